//! A limiter of keys a second in front of nothing: a small server of this test's own, which counts the keys
//! of each `DeleteObjects` and answers `SlowDown` beyond its allowance. No real server here limits.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::future::join_all;
use tombstream_connectors::s3::{Conditional, Probe, S3Sink};
use tombstream_model::{Sink as _, SinkError, Target, Verdict};

use super::documents;
use super::told::{Told, deleted, error};

const ALLOWED: f64 = 3500.0;
const FIRST: f64 = 1000.0;

/// A bucket of tokens that holds a second's worth and begins with room for one full request, which counts
/// as allowance.
#[derive(Debug)]
struct Limiter {
    level: f64,
    filled: Instant,
    taken: usize,
    requests: usize,
    refused: usize,
}

impl Limiter {
    fn new() -> Self {
        Self { level: FIRST, filled: Instant::now(), taken: 0, requests: 0, refused: 0 }
    }

    fn admits(&mut self, keys: usize) -> bool {
        let now = Instant::now();
        let filled = (now - self.filled).as_secs_f64() * ALLOWED;
        self.level = (self.level + filled).min(ALLOWED);
        self.filled = now;
        self.requests += 1;
        let admitted = keys as f64 <= self.level;
        match admitted {
            true => {
                self.level -= keys as f64;
                self.taken += keys;
            }
            false => self.refused += 1,
        }
        admitted
    }

    fn restart(&mut self) {
        (self.taken, self.requests, self.refused) = (0, 0, 0);
        (self.level, self.filled) = (FIRST, Instant::now());
    }
}

/// As the pipeline does it: four batches in flight, what is not confirmed is asked again.
async fn drive(sink: &S3Sink, time: Duration) {
    let started = Instant::now();
    let keys: Vec<String> = (0..1000).map(|n| format!("docs/{n}/original")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let batch = documents(&keys);
    let run = async || {
        while started.elapsed() < time {
            let mut open: Vec<Target> = batch.clone();
            while !open.is_empty() && started.elapsed() < time {
                let wait = match sink.destroy(&open).await {
                    Ok(outcomes) => {
                        let wait = outcomes.iter().filter_map(|it| it.retry_after).max();
                        let mut verdicts = outcomes.iter().map(|it| it.verdict);
                        open.retain(|_| verdicts.next() != Some(Verdict::Deleted));
                        wait
                    }
                    Err(SinkError::Throttled { .. }) => Some(Duration::from_millis(200)),
                    Err(error) => panic!("{error}"),
                };
                tokio::time::sleep(wait.unwrap_or_default()).await;
            }
        }
    };
    join_all([run(), run(), run(), run()]).await;
}

/// Goodput as a share of the allowance, and the share of requests that were refused.
async fn measure(rate: u32, found: Duration, time: Duration) -> (f64, f64) {
    let limiter = Arc::new(Mutex::new(Limiter::new()));
    let of_server = Arc::clone(&limiter);
    let told = Told::start(move |request| {
        (request.method == "POST").then(|| {
            let keys = request.keys();
            match of_server.lock().unwrap().admits(keys.len()) {
                true => (200, deleted(&keys)),
                false => (503, error("SlowDown", "Please reduce your request rate.")),
            }
        })
    })
    .await;
    let sink = told.sink(|config| {
        config.probe = Probe::None;
        config.conditional = Conditional::Never;
        config.rate_per_prefix = rate.try_into().unwrap();
    });
    if !found.is_zero() {
        drive(&sink, found).await;
        let limiter = limiter.lock().unwrap();
        println!(
            "  found in {found:?}: {} of {} requests refused",
            limiter.refused, limiter.requests
        );
    }
    limiter.lock().unwrap().restart();
    let started = Instant::now();
    drive(&sink, time).await;
    let limiter = limiter.lock().unwrap();
    let goodput = limiter.taken as f64 / (FIRST + ALLOWED * started.elapsed().as_secs_f64());
    let refused = limiter.refused as f64 / limiter.requests as f64;
    println!(
        "rate_per_prefix {rate}: goodput {goodput:.3} of {ALLOWED} keys/s, {} of {} requests refused ({:.1}%)",
        limiter.refused,
        limiter.requests,
        refused * 100.0
    );
    (goodput, refused)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limiter_of_3500_keys_a_second_is_used_up_and_hardly_refuses() {
    let (goodput, refused) = measure(3500, Duration::ZERO, Duration::from_secs(12)).await;
    assert!(goodput >= 0.9, "{goodput}");
    assert!(refused <= 0.02, "{refused}");
}

/// Where the configuration says far more than the store takes, the rate is found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_below_the_configured_rate_is_found() {
    let (found, time) = (Duration::from_secs(10), Duration::from_secs(40));
    let (goodput, refused) = measure(10_000, found, time).await;
    assert!(goodput >= 0.9, "{goodput}");
    assert!(refused <= 0.02, "{refused}");
}
