//! `tombstream dead-letters`: messages that could not be decoded, and how they are driven again.

use std::fmt::Write as _;

use anyhow::{Context as _, bail};
use tombstream_connectors::postgres::{self, DeadLetterRow, Redrive, Redriven};

use super::page::{PageArgs, print};
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
        #[command(flatten)]
        page: PageArgs,
    },
    /// One of them, whole.
    Show {
        /// Its number.
        id: i64,
    },
    /// Have the running pipeline decode them again, after what was wrong is mended.
    Redrive {
        /// Their numbers.
        #[arg(required_unless_present = "all", value_name = "ID")]
        ids: Vec<i64>,
        /// All that are not resolved.
        #[arg(long, conflicts_with = "ids")]
        all: bool,
        /// Of them, those that were written to this topic.
        #[arg(long)]
        topic: Option<String>,
        /// Of them, those whose reason contains this text.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Who orders it, for the ledger's record.
        #[arg(long, value_name = "NAME", env = "USER", default_value = "unknown")]
        actor: String,
    },
}

pub(super) async fn dead_letters(config: Config, args: Args) -> anyhow::Result<()> {
    let pool = wiring::connect_ledger(&config.database, "tombstream-dead-letters").await?;
    let unread = "the ledger can't be read; is it migrated (`tombstream migrate`)?";
    match args.command {
        Command::List { page: PageArgs { after, limit, json } } => {
            for letter in postgres::dead_letters(&pool, after, limit).await.context(unread)? {
                print(&letter, json, line)?;
            }
        }
        Command::Show { id } => {
            let Some(letter) = postgres::dead_letter(&pool, id).await.context(unread)? else {
                bail!("there is no dead letter {id}");
            };
            println!("{}", line(&letter));
            println!("{}", fate(&letter));
            println!("key: {}", shown(letter.key.as_deref()));
            println!("value: {}", shown(letter.value.as_deref()));
        }
        Command::Redrive { ids, all: _, topic, reason, actor } => {
            let redrive = Redrive { ids, topic, reason };
            let redriven = postgres::order_redrive(&pool, &redrive, &actor).await.context(
                "the order can't be written: this login must own the ledger or be a member of \
                 tombstream_api or tombstream_pipeline",
            )?;
            return said(&redriven);
        }
    }
    Ok(())
}

fn said(redriven: &Redriven) -> anyhow::Result<()> {
    for (id, why) in &redriven.refused {
        println!("{id} is not driven again: {why}");
    }
    match redriven.ordered.len() {
        0 => println!("nothing is driven again"),
        count => println!(
            "{count} letters are driven again by the pipeline that reads {}; `tombstream dead-letters \
             list` shows what stays",
            redriven.topics.join(", ")
        ),
    }
    if redriven.refused.is_empty() { Ok(()) } else { bail!("some letters can't be driven again") }
}

/// How much of it is here, and what became of it.
fn fate(letter: &DeadLetterRow) -> String {
    let digest = letter.sha256.as_deref().map(|digest| shown(Some(digest))).unwrap_or_default();
    let mut text = match letter.kept.as_str() {
        "whole" => format!("{} bytes, whole", letter.bytes),
        "cut" => format!(
            "{} bytes, cut to dead_letters.bytes_max: it can't be driven again; SHA-256 {digest}",
            letter.bytes
        ),
        _ => format!(
            "{} bytes, none kept (dead_letters.redact): it can't be driven again; SHA-256 {digest}",
            letter.bytes
        ),
    };
    if letter.form == "row" {
        text.push_str("; a row of the log: it can't be driven again, the sweep finds its flag");
    }
    if let Some(topic) = &letter.written_to {
        text.push_str(&format!("; written to {topic}"));
    }
    if letter.attempts > 1 {
        text.push_str(&format!("; undecodable {} times", letter.attempts));
    }
    if let Some(at) = &letter.redrive_at {
        text.push_str(&format!(
            "; to be driven again since {}",
            at.format("%Y-%m-%d %H:%M:%S UTC")
        ));
    }
    if let Some(at) = &letter.resolved_at {
        text.push_str(&format!("; resolved {}", at.format("%Y-%m-%d %H:%M:%S UTC")));
    }
    text
}

fn line(letter: &DeadLetterRow) -> String {
    let at = letter.buried_at.format("%Y-%m-%d %H:%M:%S UTC");
    format!(
        "{} {at} {}/{}@{}{}: {}",
        letter.id,
        letter.topic,
        letter.partition,
        letter.offset,
        match (&letter.resolved_at, &letter.redrive_at) {
            (Some(_), _) => " (resolved)",
            (None, Some(_)) => " (to be driven again)",
            (None, None) => "",
        },
        letter.reason
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
