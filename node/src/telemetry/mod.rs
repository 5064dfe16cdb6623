//! Logs and metrics of a process.
//!
//! Logs go to standard output or to a file that is rotated by size; as text or one JSON object a line. Metrics are recorded
//! through the `metrics` facade and rendered on demand by the admin listener, with the customary `process_*` added.

mod log_file;
mod process;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use serde::{Deserialize, Serialize};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use log_file::LogFile;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What to log, how and where. Services put it together from the original's keys `log-level`, `log-file` and `log-format`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// `debug`, `info`, `warn`, `error`, `fatal` as in the original, or directives such as `info,node=debug`.
    pub level: String,
    /// Text or JSON.
    pub format: LogFormat,
    /// The file to append to (rotated at 300 MiB, as the original does); standard output if absent.
    pub file: Option<PathBuf>,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::default(), file: None }
    }
}

/// Why logs or metrics cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The level is neither a level nor a list of directives.
    #[error(
        "log-level `{level}` is not understood ({reason}): use debug, info, warn or error, or directives such as `info,node=debug`"
    )]
    Level {
        /// As given.
        level: String,
        /// What the parser said.
        reason: String,
    },
    /// The log file cannot be opened.
    #[error("cannot open log-file {path}: {source}")]
    File {
        /// As given.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Logs or metrics were set up before in this process.
    #[error("logs and metrics are set up once per process: {0}")]
    Twice(String),
    /// The metrics recorder refuses its settings.
    #[error("cannot set up metrics: {0}")]
    Metrics(#[from] BuildError),
}

type SetLevel = dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync;

/// The process's logs and metrics. Cheap to clone.
#[derive(Clone)]
pub struct Telemetry {
    metrics: PrometheusHandle,
    set_level: Option<Arc<SetLevel>>,
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").finish_non_exhaustive()
    }
}

impl Telemetry {
    /// Sets up both for the process; once, from `main`.
    pub fn init(config: &LogConfig) -> Result<Self, TelemetryError> {
        let (filter, handle) = reload::Layer::<EnvFilter, Registry>::new(filter(&config.level)?);
        let output: Box<dyn Layer<_> + Send + Sync> = match &config.file {
            None => layer(config.format, std::io::stdout),
            Some(path) => {
                let file = LogFile::open(path)
                    .map_err(|source| TelemetryError::File { path: path.clone(), source })?;
                layer(config.format, file)
            }
        };
        tracing_subscriber::registry()
            .with(filter)
            .with(output)
            .try_init()
            .map_err(|error| TelemetryError::Twice(error.to_string()))?;
        // A panic ends one task; what it said belongs into the log, wherever standard error goes.
        std::panic::set_hook(Box::new(|panic| {
            tracing::error!(
                place = panic.location().map(ToString::to_string),
                reason = panic.payload_as_str().unwrap_or("no message"),
                "panicked"
            );
        }));
        let recorder = builder()?.build_recorder();
        let metrics = recorder.handle();
        metrics::set_global_recorder(recorder).map_err(|error| TelemetryError::Twice(error.to_string()))?;
        Ok(Self { metrics, set_level: Some(Arc::new(move |filter| handle.reload(filter))) })
    }

    /// One that installs nothing, for running services inside tests: what is recorded goes nowhere, `/metrics` shows only
    /// the process.
    pub fn detached() -> Self {
        Self { metrics: PrometheusBuilder::new().build_recorder().handle(), set_level: None }
    }

    /// Everything recorded so far, in Prometheus's text format.
    pub fn render_metrics(&self) -> String {
        let mut text = self.metrics.render();
        process::render(&mut text);
        text
    }

    /// Folds recorded samples together. To be called every few seconds where nobody may be scraping; the admin listener
    /// does.
    pub fn upkeep(&self) {
        self.metrics.run_upkeep();
    }

    /// Changes the log level from now on; same forms as [`LogConfig::level`].
    pub fn set_level(&self, level: &str) -> Result<(), TelemetryError> {
        let filter = filter(level)?;
        match &self.set_level {
            None => Ok(()),
            Some(set) => set(filter).map_err(|error| TelemetryError::Twice(error.to_string())),
        }
    }
}

fn layer<W>(format: LogFormat, writer: W) -> Box<dyn Layer<reload_stack::Filtered> + Send + Sync>
where
    W: for<'w> tracing_subscriber::fmt::MakeWriter<'w> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(writer);
    match format {
        LogFormat::Text => Box::new(layer),
        LogFormat::Json => Box::new(layer.json().flatten_event(true).with_current_span(false)),
    }
}

/// Names the type of the subscriber that the output layer sits on.
mod reload_stack {
    use tracing_subscriber::layer::Layered;
    use tracing_subscriber::{EnvFilter, Registry, reload};

    pub(super) type Filtered = Layered<reload::Layer<EnvFilter, Registry>, Registry>;
}

/// The original's level names are taken, `fatal` as `error`; anything else has to be directives.
fn filter(level: &str) -> Result<EnvFilter, TelemetryError> {
    let error = |reason: String| TelemetryError::Level { level: level.to_owned(), reason };
    let lower = level.trim().to_lowercase();
    let directives = match lower.as_str() {
        "" => return Err(error("it is empty".to_owned())),
        "fatal" | "panic" => "error",
        "warning" => "warn",
        other => other,
    };
    let bare = !directives.contains(['=', ',']);
    if bare && !matches!(directives, "off" | "error" | "warn" | "info" | "debug" | "trace") {
        return Err(error("no such level".to_owned()));
    }
    EnvFilter::try_new(directives).map_err(|parse| error(parse.to_string()))
}

/// Histograms by the ending of their names: durations 50 µs to 26 s, sizes 16 B to 256 MiB, both in doublings, as the
/// original's dashboards expect.
fn builder() -> Result<PrometheusBuilder, BuildError> {
    let durations: Vec<f64> = (0..20).map(|i| 0.000_05 * f64::from(1u32 << i)).collect();
    let sizes: Vec<f64> = (0..25).map(|i| 16.0 * f64::from(1u32 << i)).collect();
    let mut builder = PrometheusBuilder::new();
    for suffix in ["_seconds", "_time"] {
        builder = builder.set_buckets_for_metric(Matcher::Suffix(suffix.to_owned()), &durations)?;
    }
    for suffix in ["_bytes", "_size"] {
        builder = builder.set_buckets_for_metric(Matcher::Suffix(suffix.to_owned()), &sizes)?;
    }
    Ok(builder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels() {
        for level in ["info", "WARN", "warning", "fatal", "debug", "info,node=debug"] {
            assert!(filter(level).is_ok(), "{level}");
        }
        for level in ["", "loud", "info,node=loud"] {
            let error = filter(level).unwrap_err().to_string();
            assert!(error.contains(&format!("`{level}`")), "{error}");
        }
    }

    #[test]
    fn durations_and_sizes_are_histograms() {
        let recorder = builder().unwrap().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            metrics::histogram!("binlog_pump_rpc_duration_seconds", "method" => "WriteBinlog").record(0.0001);
            metrics::histogram!("binlog_pump_storage_write_binlog_size").record(17.0);
            metrics::histogram!("other").record(1.0);
        });
        let text = handle.render();
        assert!(
            text.contains("rpc_duration_seconds_bucket{method=\"WriteBinlog\",le=\"0.0001\"} 1"),
            "{text}"
        );
        assert!(text.contains("write_binlog_size_bucket{le=\"16\"} 0"), "{text}");
        assert!(text.contains("write_binlog_size_bucket{le=\"32\"} 1"), "{text}");
        assert!(text.contains("other{quantile=\"0.5\"}"), "{text}");
    }

    #[test]
    fn a_detached_one_shows_the_process() {
        let text = Telemetry::detached().render_metrics();
        let resident =
            text.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes ")).unwrap();
        assert!(resident.parse::<u64>().unwrap() > 1 << 20, "{text}");
        assert!(Telemetry::detached().set_level("nonsense!").is_err());
    }
}
