//! Lists as every command prints them.

use serde::Serialize;

/// Which part of a list, and how it is printed.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct PageArgs {
    /// Only those whose number is above this one.
    #[arg(long, value_name = "ID", default_value_t = 0)]
    pub(super) after: i64,
    /// Most lines.
    #[arg(long, value_name = "N", default_value_t = 100)]
    #[arg(value_parser = clap::value_parser!(i64).range(1..))]
    pub(super) limit: i64,
    /// JSON objects instead of lines for people.
    #[arg(long)]
    pub(super) json: bool,
}

/// Prints one thing: a JSON object, or what `text` makes of it.
pub(super) fn print<T: Serialize>(
    one: &T,
    json: bool,
    text: impl Fn(&T) -> String,
) -> anyhow::Result<()> {
    match json {
        true => println!("{}", serde_json::to_string(one)?),
        false => println!("{}", text(one)),
    }
    Ok(())
}
