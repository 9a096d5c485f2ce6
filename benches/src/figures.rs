//! Figures of several rounds: medians, and ratios with their spread.

use std::fmt;

use serde::Serialize;
use serde_json::{Value, json};

use crate::cpu::Drained;

/// The middle one.
pub(crate) fn median(of: &[f64]) -> f64 {
    let mut sorted = of.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// One side over the other, round by round: both sides of a round were measured one after the other, so what
/// slows the machine slows both.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Ratio {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Ratio {
    pub(crate) fn of(one: &[f64], other: &[f64]) -> Self {
        let ratios: Vec<f64> = one.iter().zip(other).map(|(one, other)| one / other).collect();
        Self::spread(&ratios)
    }

    /// Of a figure that each round has by itself. None is below zero.
    pub(crate) fn spread(all: &[f64]) -> Self {
        let (min, max) =
            all.iter().fold((f64::MAX, 0_f64), |(min, max), it| (min.min(*it), max.max(*it)));
        Self { median: median(all), min, max }
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} ({:.2} to {:.2})", self.median, self.min, self.max)
    }
}

/// How long each round took.
pub(crate) fn walls(of: &[Drained]) -> Vec<f64> {
    of.iter().map(|it| it.wall).collect()
}

/// How long processors were busy with each round.
pub(crate) fn processors(of: &[Drained]) -> Vec<f64> {
    of.iter().map(|it| it.processor).collect()
}

/// How long things took, in seconds, sorted.
pub(crate) struct Times(Vec<f64>);

impl Times {
    pub(crate) fn new(mut all: Vec<f64>) -> Self {
        all.sort_by(f64::total_cmp);
        Self(all)
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The milliseconds that this share of them did not exceed.
    pub(crate) fn at(&self, share: f64) -> f64 {
        self.0[((self.0.len() - 1) as f64 * share).round() as usize] * 1e3
    }

    pub(crate) fn json(&self) -> Value {
        json!({"p50_ms": self.at(0.5), "p99_ms": self.at(0.99)})
    }
}
