//! How many keys a second go to a prefix: no more than it took lately.
//!
//! S3 takes some 3,500 writes a second of one prefix and answers the rest with `SlowDown`. Every key
//! of a bulk delete counts, and so does every version, so a limit of requests would not do. The rate
//! falls when the store asks for less and creeps up again while it does not.
//!
//! Own lines rather than a crate's: `governor`, the usual one, has no rate that changes and no cost
//! beyond its burst, and those two are all that there is here.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What is left of the rate after a refusal, and after one that comes soon after another.
const CUT: f64 = 0.9;
const CUT_AGAIN: f64 = 0.7;
const SOON: Duration = Duration::from_secs(2);
/// Growth a second, as a share of the rate that was refused last: slowly near that rate, fast well
/// below it, and fast above it, where the store has shown that it takes more by now.
const CREEP: f64 = 0.01;
const CATCH_UP: f64 = 0.1;
/// Near the refused rate, growth a request as well: a cut is made good in no less than a hundred of
/// them, so that one in a hundred is refused, however large they are.
const CREEP_A_REQUEST: f64 = (1.0 - CUT) / 100.0;
/// A lane without traffic says nothing new of its store, so idle time does not count as growth.
const GROWTH_MAX: Duration = Duration::from_secs(1);
/// Beyond so many prefixes, those that are at rest and at full rate are forgotten.
const LANES_MAX: usize = 10_000;

/// The rates of all prefixes of a store, shared by all that is in flight.
#[derive(Debug)]
pub(super) struct Pace {
    rate_max: f64,
    prefix: String,
    depth: usize,
    lanes: Mutex<HashMap<String, Lane>>,
}

/// When a request may leave, and how many of its keys.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Turn {
    pub(super) at: Instant,
    pub(super) keys: usize,
}

#[derive(Debug, Clone)]
struct Lane {
    rate: f64,
    /// When the next key may leave.
    next: Instant,
    grown: Instant,
    cut: Option<Instant>,
    /// The rate that was refused last.
    refused: f64,
}

impl Pace {
    /// A prefix is the bucket, the store's `prefix` and `depth` further segments of a key.
    pub(super) fn new(rate_max: NonZeroU32, prefix: &str, depth: usize) -> Self {
        Self {
            rate_max: f64::from(rate_max.get()),
            prefix: prefix.to_owned(),
            depth,
            lanes: Mutex::new(HashMap::new()),
        }
    }

    /// Reserves a turn for the first of `keys`: as many as their prefixes take in a second, and none
    /// where the turn would come after `latest`. What is reserved counts as sent.
    pub(super) fn reserve<'a>(
        &self,
        now: Instant,
        bucket: &str,
        keys: impl IntoIterator<Item = &'a str>,
        latest: Instant,
    ) -> Turn {
        let mut lanes = self.lanes.lock().expect("nothing panics while it is held");
        if lanes.len() > LANES_MAX {
            lanes.retain(|_, lane| lane.next > now || lane.rate < self.rate_max);
        }
        let mut turn = Turn { at: now, keys: 0 };
        let mut sent: HashMap<String, f64> = HashMap::new();
        for key in keys {
            let name = self.lane(bucket, key);
            let lane = lanes.entry(name.clone()).or_insert_with(|| Lane::new(now, self.rate_max));
            let first = !sent.contains_key(&name);
            if first {
                lane.grow(now, self.rate_max);
            }
            let start = lane.next.max(now);
            let sent = sent.entry(name).or_default();
            if (first && start > latest) || *sent >= lane.rate.max(1.0) {
                turn.at = if turn.keys == 0 { start } else { turn.at };
                break;
            }
            // The first key's time is the request's: its other keys are paid for by the next one.
            if first {
                turn.at = turn.at.max(start);
            }
            lane.next = start + Duration::from_secs_f64(1.0 / lane.rate);
            *sent += 1.0;
            turn.keys += 1;
        }
        turn
    }

    /// The store asked for less of what these keys belong to, whose turn was asked for at `asked`.
    pub(super) fn refused<'a>(
        &self,
        now: Instant,
        asked: Instant,
        bucket: &str,
        keys: impl IntoIterator<Item = &'a str>,
    ) {
        let mut lanes = self.lanes.lock().expect("nothing panics while it is held");
        for key in keys {
            if let Some(lane) = lanes.get_mut(&self.lane(bucket, key)) {
                lane.cut(now, asked);
            }
        }
    }

    fn lane(&self, bucket: &str, key: &str) -> String {
        let rest = key.strip_prefix(self.prefix.as_str()).unwrap_or(key);
        let end = rest.match_indices('/').nth(self.depth.wrapping_sub(1));
        let segments = end.map_or("", |(at, _)| &rest[..=at]);
        format!("{bucket}/{segments}")
    }
}

impl Lane {
    fn new(now: Instant, rate: f64) -> Self {
        Self { rate, next: now, grown: now, cut: None, refused: rate }
    }

    fn grow(&mut self, now: Instant, most: f64) {
        let since = now.saturating_duration_since(self.grown).min(GROWTH_MAX).as_secs_f64();
        // A little more than the cut itself, since the division may round.
        let is_near = (CUT - 0.001..=2.0 - CUT).contains(&(self.rate / self.refused));
        let share = if is_near { (CREEP * since).min(CREEP_A_REQUEST) } else { CATCH_UP * since };
        self.rate = (self.rate + share * self.refused).min(most);
        self.grown = now;
    }

    /// One cut serves for all that was under way when it was made: it says nothing of the new rate.
    fn cut(&mut self, now: Instant, asked: Instant) {
        if self.cut.is_some_and(|cut| asked <= cut) {
            return;
        }
        let since = self.cut.map(|cut| now.saturating_duration_since(cut));
        self.refused = self.rate;
        let share = if since.is_some_and(|since| since < SOON) { CUT_AGAIN } else { CUT };
        self.rate = (self.rate * share).max(1.0);
        self.cut = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn pace(rate: u32, depth: usize) -> Pace {
        Pace::new(NonZeroU32::new(rate).unwrap(), "docs/", depth)
    }

    fn keys(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("docs/{}/{n}", n % 2)).collect()
    }

    fn ask(pace: &Pace, now: Instant, keys: &[String], latest: Instant) -> Turn {
        pace.reserve(now, "bucket", keys.iter().map(String::as_str), latest)
    }

    #[test]
    fn every_key_counts_and_not_the_request() {
        let (pace, now) = (pace(1000, 0), Instant::now());
        let later = now + 10 * SECOND;
        assert_eq!(ask(&pace, now, &keys(500), later), Turn { at: now, keys: 500 });
        let turn = ask(&pace, now, &keys(10), later);
        assert!((turn.at - now).abs_diff(SECOND / 2) < Duration::from_millis(1), "{turn:?}");
        // No more than a second's worth at once, and none beyond the patience of whoever asks.
        assert_eq!(ask(&pace, now, &keys(5000), later).keys, 1000);
        assert_eq!(ask(&pace, now, &keys(10), now + SECOND).keys, 0);
    }

    #[test]
    fn prefixes_have_rates_of_their_own() {
        let (pace, now) = (pace(100, 1), Instant::now());
        assert_eq!(ask(&pace, now, &keys(200), now).keys, 200, "100 of docs/0/, 100 of docs/1/");
        let other = ["docs/2/a".to_owned()];
        assert_eq!(ask(&pace, now, &other, now).keys, 1);
        assert_eq!(ask(&pace, now, &keys(1), now).keys, 0);
    }

    #[test]
    fn requests_refused_together_cut_the_rate_once_and_later_ones_more() {
        let mut lane = Lane::new(Instant::now(), 1000.0);
        let now = Instant::now();
        for ms in 0..10 {
            lane.cut(now + Duration::from_millis(ms), now);
        }
        assert!((lane.rate - 900.0).abs() < 1.0, "{lane:?}");
        lane.cut(now + SECOND, now + SECOND / 2);
        assert!((lane.rate - 630.0).abs() < 1.0, "{lane:?}");
        // It catches up to what was not refused, and creeps from there.
        let mut at = now + SECOND;
        for _ in 0..20 {
            at += SECOND;
            lane.grow(at, 1000.0);
        }
        assert!((810.0..960.0).contains(&lane.rate), "{lane:?}");
    }

    /// A limiter without mercy, in simulated time, at a third of what the configuration allows. The first
    /// half minute, in which the rate is found, is counted apart.
    #[test]
    fn the_rate_settles_at_what_the_store_takes() {
        const ALLOWED: f64 = 1200.0;
        let pace = pace(3500, 0);
        let (mut now, mut level, mut filled) = (Instant::now(), ALLOWED, Instant::now());
        let (found, batch) = (now + 30 * SECOND, keys(1000));
        let (mut taken, mut requests, mut refused) = ([0_usize; 2], [0_usize; 2], [0_usize; 2]);
        while now < found + 300 * SECOND {
            let asked = now;
            let turn = ask(&pace, asked, &batch, now + 10 * SECOND);
            now = now.max(turn.at) + Duration::from_millis(5);
            level = (level + (now - filled).as_secs_f64() * ALLOWED).min(ALLOWED);
            filled = now;
            let half = usize::from(now >= found);
            requests[half] += 1;
            let cost = turn.keys as f64;
            if cost > level {
                refused[half] += 1;
                pace.refused(now, asked, "bucket", batch.iter().map(String::as_str));
            } else {
                level -= cost;
                taken[half] += turn.keys;
            }
        }
        let goodput = |half: usize, time: f64| taken[half] as f64 / (ALLOWED * time);
        println!(
            "while it is found: goodput {:.3}, {} of {} requests refused",
            goodput(0, 30.0),
            refused[0],
            requests[0]
        );
        println!("then: {:.3}, {} of {}", goodput(1, 300.0), refused[1], requests[1]);
        assert!(goodput(1, 300.0) >= 0.9, "{taken:?}");
        assert!(refused[1] * 50 <= requests[1], "{refused:?} of {requests:?}");
    }
}
