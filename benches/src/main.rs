//! What Tombstream costs, beside what anybody could use instead, both in one run on one machine.
//!
//! `cargo xtask bench` runs most of them, each with its servers; README.md says what each needs by hand.

mod backfill;
mod bento;
mod cost;
mod cpu;
mod decode;
mod deletions;
mod direct;
mod drain;
mod envelope;
mod figures;
mod flips;
mod growth;
mod installation;
mod latency;
mod ledger;
mod leg;
mod memory;
mod mistake;
mod null;
mod peer;
mod poc;
mod proxy;
mod receipts;
mod requests;
mod scene;
mod server;
mod sinks;
mod slot;
mod startup;
mod waiting;

use clap::{Parser, Subcommand};

/// As in the product.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(about = "What Tombstream costs, beside what anybody could use instead")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Drains a slot with null sinks, beside pg_recvlogical with /dev/null
    Slot(slot::Options),
    /// Rows that are flagged already, with null sinks, beside psql's copy to /dev/null
    Backfill(backfill::Options),
    /// Decoding alone, beside serde_json into borrowed structs; needs no server
    Decode(decode::Options),
    /// Drains a topic with null sinks, beside librdkafka that counts; needs Kafka
    Drain(drain::Options),
    /// Straight from the log, beside Debezium and Kafka, over the same flips
    Direct(direct::Options),
    /// Flags through the api, beside pgbench
    Flips(flips::Options),
    /// From the flip to the row's end, beside the sum of its parts timed alone
    Latency(latency::Options),
    /// Claims and finalizing with receipts, beside batched pgbench
    Ledger(ledger::Options),
    /// Whether memory grows with the keys that pass; needs no server
    Growth(growth::Options),
    /// Until the first copy is destroyed; the binary's size; the idle process
    Startup(startup::Options),
    /// Every row flagged at once, behind a breaker, with several processes running
    Mistake(mistake::Options),
    /// Millions of flags in their grace beside a pipeline that waits for them
    Waiting(waiting::Options),
    /// Finalizing with chained receipts beside finalizing without, and sealing
    Receipts(receipts::Options),
    /// The pipeline from memory, beside a loop of one thread; needs no server
    Cost(cost::Options),
    /// The sinks of S3 and Elasticsearch, beside tight loops of requests that were made beforehand
    Sinks(sinks::Options),
    /// From flags to rows that are gone, beside the proof of concept; needs all servers but Connect, and a Python
    Poc(poc::Options),
    /// The Elasticsearch leg, beside Bento; needs Kafka and Elasticsearch, and a Bento built from peers/bento
    Bento(bento::Options),
    /// The Elasticsearch leg as a process; `bento` starts it
    #[command(hide = true)]
    Leg(leg::Options),
    /// Destructive requests for a backlog, and for the same ten times over; needs all servers but Connect
    Requests(requests::Options),
    /// Processor time of a million deletions, and of an event among one million and ten; needs all servers but Connect
    Deletions(deletions::Options),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.install_default().expect("nothing else has chosen a provider");
    match Cli::parse().command {
        Command::Slot(options) => slot::run(options).await,
        Command::Backfill(options) => backfill::run(options).await,
        Command::Decode(options) => decode::run(&options),
        Command::Drain(options) => drain::run(options).await,
        Command::Direct(options) => direct::run(options).await,
        Command::Flips(options) => flips::run(options).await,
        Command::Latency(options) => latency::run(options).await,
        Command::Ledger(options) => ledger::run(options).await,
        Command::Growth(options) => growth::run(options).await,
        Command::Startup(options) => startup::run(options).await,
        Command::Mistake(options) => mistake::run(options).await,
        Command::Waiting(options) => waiting::run(options).await,
        Command::Receipts(options) => receipts::run(options).await,
        Command::Cost(options) => cost::run(options).await,
        Command::Sinks(options) => sinks::run(options).await,
        Command::Poc(options) => poc::run(options).await,
        Command::Bento(options) => bento::run(options).await,
        Command::Leg(options) => leg::run(options).await,
        Command::Requests(options) => requests::run(options).await,
        Command::Deletions(options) => deletions::run(options).await,
    }
}
