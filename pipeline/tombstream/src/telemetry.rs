//! Logs to stderr (the demo's to a file), metrics to whoever asks for `/metrics`.
//!
//! Metrics' names are constants where they are counted: `tombstream_dataflow::metric` and the
//! connectors. Here is only how they are shown.

use std::fs::File;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::util::TryInitError;

/// What a line of the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

/// The variable that filters the log, as `tracing` filters are written: `info,tombstream=debug`.
const FILTER: &str = "TOMBSTREAM_LOG";

/// What is shown without it. Fluvio's client tells of every connection, sqlx of every slow statement,
/// with kilobytes of its text.
const FILTER_DEFAULT: &str = if cfg!(feature = "fluvio") {
    "info,sqlx::query=error,fluvio=warn"
} else {
    "info,sqlx::query=error"
};

/// Bounds of durations, in seconds: from a millisecond to the longest deadline.
const SECONDS: [f64; 12] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// How often old samples are folded away, so that a process nobody scrapes does not grow.
const UPKEEP: Duration = Duration::from_secs(5);

/// Sends the log to `file`, or else to stderr. What the filter can't read is said there once, and
/// `info` is used.
pub(crate) fn log(format: LogFormat, file: Option<File>) -> Result<(), TryInitError> {
    let (filter, complaint) = match std::env::var(FILTER) {
        Ok(text) => match EnvFilter::try_new(&text) {
            Ok(filter) => (filter, None),
            Err(error) => (EnvFilter::new(FILTER_DEFAULT), Some((text, error))),
        },
        Err(_) => (EnvFilter::new(FILTER_DEFAULT), None),
    };
    let colours = file.is_none() && std::io::stderr().is_terminal();
    let writer = match file {
        Some(file) => BoxMakeWriter::new(Arc::new(file)),
        None => BoxMakeWriter::new(std::io::stderr),
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init()?,
        LogFormat::Text => {
            registry.with(lines.with_ansi(colours)).try_init()?;
        }
    }
    if let Some((text, error)) = complaint {
        tracing::warn!(filter = text, error = %error, "{FILTER} is no filter, using {FILTER_DEFAULT}");
    }
    Ok(())
}

/// The text of `/metrics`.
#[derive(Clone)]
pub(crate) struct Metrics(PrometheusHandle);

impl Metrics {
    /// Makes the recorder of this process.
    pub(crate) fn install() -> Result<Self, BuildError> {
        let handle = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)?
            .install_recorder()?;
        let upkeep = handle.clone();
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(UPKEEP);
            loop {
                ticks.tick().await;
                upkeep.run_upkeep();
            }
        });
        Ok(Self(handle))
    }

    pub(crate) fn render(&self) -> String {
        self.0.render()
    }

    /// The same for the api.
    pub(crate) fn text(&self) -> tombstream_api::MetricsText {
        let metrics = self.clone();
        Arc::new(move || metrics.render())
    }
}
