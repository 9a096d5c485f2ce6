//! `tombstream dead-letters`: messages that could not be decoded.

use std::fmt::Write as _;

use anyhow::{Context as _, bail};
use tombstream_connectors::postgres::{self, DeadLetterRow};

use crate::config::Config;
use crate::wiring;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// One line each, oldest first.
    List {
        /// Only those whose number is above this one.
        #[arg(long, value_name = "ID", default_value_t = 0)]
        after: i64,
        /// Most lines.
        #[arg(long, value_name = "N", default_value_t = 100)]
        #[arg(value_parser = clap::value_parser!(i64).range(1..))]
        limit: i64,
        /// JSON objects instead of lines for people.
        #[arg(long)]
        json: bool,
    },
    /// One of them, whole.
    Show {
        /// Its number.
        id: i64,
    },
}

pub(super) async fn dead_letters(config: Config, args: Args) -> anyhow::Result<()> {
    let pool = wiring::connect(&config.database, "tombstream-dead-letters").await?;
    let unread = "the ledger can't be read; is it migrated (`tombstream migrate`)?";
    match args.command {
        Command::List { after, limit, json } => {
            for letter in postgres::dead_letters(&pool, after, limit).await.context(unread)? {
                match json {
                    true => println!("{}", serde_json::to_string(&letter)?),
                    false => println!("{}", line(&letter)),
                }
            }
        }
        Command::Show { id } => {
            let Some(letter) = postgres::dead_letter(&pool, id).await.context(unread)? else {
                bail!("there is no dead letter {id}");
            };
            println!("{}", line(&letter));
            println!("key: {}", shown(letter.key.as_deref()));
            println!("value: {}", shown(letter.value.as_deref()));
        }
    }
    Ok(())
}

fn line(letter: &DeadLetterRow) -> String {
    let at = letter.buried_at.format("%Y-%m-%d %H:%M:%S UTC");
    format!(
        "{} {at} {}/{}@{}: {}",
        letter.id, letter.topic, letter.partition, letter.offset, letter.reason
    )
}

/// Bytes as text if they are; else as hexadecimal digits. Control characters would move the cursor
/// of whoever looks, so they are escaped.
fn shown(bytes: Option<&[u8]>) -> String {
    match bytes {
        None => "none".to_owned(),
        Some(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => text.chars().fold(String::new(), |mut shown, c| {
                if c.is_control() {
                    shown.extend(c.escape_default());
                } else {
                    shown.push(c);
                }
                shown
            }),
            Err(_) => bytes.iter().fold(String::from("0x"), |mut shown, byte| {
                write!(shown, "{byte:02x}").expect("a string takes everything");
                shown
            }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_can_not_play_with_the_terminal() {
        assert_eq!(shown(Some(b"{\"a\":1}\x1b[2J")), "{\"a\":1}\\u{1b}[2J");
        assert_eq!(shown(Some(&[0xff, 0x00])), "0xff00");
        assert_eq!(shown(None), "none");
    }
}
