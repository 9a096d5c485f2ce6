//! What it costs that deleted documents leave an index's files.
//!
//! ```sh
//! cargo run --release -p tombstream-connectors --no-default-features --features tantivy \
//!     --example tantivy-purge -- 100000
//! ```
//!
//! Builds an index of so many documents of some 1 kB in a temporary folder (`TMPDIR`), as one
//! application would that commits once, and destroys one document, then batches of 1,000.

use std::error::Error;
use std::time::{Duration, Instant};

use tantivy::schema::{STORED, STRING, Schema, TEXT};
use tantivy::{Index, IndexWriter, TantivyDocument};
use tombstream_connectors::tantivy::{TantivyConfig, TantivySink};
use tombstream_model::{Address, DeletionId, Fence, Sink as _, StoreId, Target, Verdict};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let documents: usize = std::env::args().nth(1).unwrap_or("100000".to_owned()).parse()?;
    let folder = tempfile::tempdir()?;
    let started = Instant::now();
    let segments = build(folder.path(), documents)?;
    println!("{documents} documents in {segments} segments: built in {:.1?}", started.elapsed());
    for purge in [false, true] {
        let mut config = TantivyConfig::new(folder.path().to_str().ok_or("an odd TMPDIR")?);
        config.purge = purge;
        config.purge_wait = Duration::ZERO;
        config.timeout = Duration::from_secs(3_600);
        let sink = TantivySink::new(config)?;
        // Spread over the whole index, and others for each round.
        let round = |count: usize, first: usize| {
            let ids = (0..count).map(move |place| first + 4 * place);
            let path = folder.path().to_string_lossy();
            ids.map(|id| target(&path, id % documents)).collect::<Vec<_>>()
        };
        let first = usize::from(purge);
        for batch in [round(1, first), round(1_000.min(documents / 8), first + 4)] {
            let started = Instant::now();
            let outcomes = sink.destroy(&batch).await?;
            let took = started.elapsed();
            let deleted = outcomes.iter().filter(|it| it.verdict == Verdict::Deleted).count();
            println!("purge = {purge}: {deleted} of {} deleted in {took:.1?}", batch.len());
        }
    }
    Ok(())
}

fn build(path: &std::path::Path, documents: usize) -> tantivy::Result<usize> {
    let mut schema = Schema::builder();
    let id = schema.add_text_field("id", STRING | STORED);
    let body = schema.add_text_field("body", TEXT | STORED);
    let index = Index::create_in_dir(path, schema.build())?;
    let mut writer: IndexWriter = index.writer(100_000_000)?;
    let mut random = 88_172_645_463_325_252_u64;
    for number in 0..documents {
        let mut text = String::new();
        while text.len() < 1_000 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            text.push_str(&format!("word{} ", random % 5_000));
        }
        let mut document = TantivyDocument::default();
        document.add_text(id, number.to_string());
        document.add_text(body, text);
        writer.add_document(document)?;
    }
    writer.commit()?;
    writer.wait_merging_threads()?;
    Ok(index.searchable_segment_ids()?.len())
}

fn target(path: &str, id: usize) -> Target {
    let address = Address::Document { index: path.into(), id: id.to_string(), routing: None };
    let fence = Fence { token: 1, until: Instant::now() + Duration::from_secs(3_600) };
    Target { deletion: DeletionId(1), store: StoreId(0), address, fence, lsn: None }
}
