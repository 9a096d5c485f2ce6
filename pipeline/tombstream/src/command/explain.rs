//! `tombstream explain`: what happened to one row, what is waited for, and what can be done.

use tombstream_api::orders::explain::{self, Explained};
use tombstream_model::Key;

use super::hold::RowArg;
use crate::config::Config;
use crate::wiring;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    row: RowArg,
    /// One JSON object instead of lines for people.
    #[arg(long)]
    json: bool,
}

pub(super) async fn explain(config: Config, args: Args) -> anyhow::Result<()> {
    let (relation, key) = args.row.find(&config)?;
    let pool = wiring::connect_ledger(&config.database, "tombstream-explain").await?;
    let explained = explain::explain(&pool, relation, &key).await?;
    match args.json {
        true => println!("{}", serde_json::to_string(&explained)?),
        false => print!("{}", text(&explained)),
    }
    Ok(())
}

pub(super) fn text(explained: &Explained) -> String {
    let key = Key::from_postgres(explained.key.clone()).to_string();
    let deletion = match (&explained.state, explained.deletion) {
        (None, _) => "no deletion of it is known".to_owned(),
        (Some(state), Some(id)) => format!("deletion {id} is {state}"),
        (Some(state), None) => format!("{state}, and the ledger has nothing of it yet"),
    };
    let mut text = format!(
        "{} {}: the row is {}; {deletion}\n",
        explained.relation,
        key.escape_debug(),
        explained.row
    );
    // What people wrote could move the cursor of whoever looks.
    for wait in &explained.told.waits_for {
        text += &format!("waits ({}): {}\n", wait.what, wait.says.escape_debug());
    }
    for can in &explained.told.can {
        text += &format!("can: {}\n", can.chars().filter(|c| !c.is_control()).collect::<String>());
    }
    for event in &explained.told.happened {
        let at = event.at.format("%Y-%m-%d %H:%M:%S UTC");
        let by = event.by.as_ref().map_or(String::new(), |by| format!(" by {}", by.escape_debug()));
        let what: String = event.what.chars().filter(|c| !c.is_control()).collect();
        text += &format!("{at}{by}: {what}\n");
    }
    text
}
