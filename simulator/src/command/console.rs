//! What `tidb-sim` prints: results on standard output, logs and progress on standard error.

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde::Serialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// The form of standard output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Standard output and standard error of the process.
#[derive(Clone, Debug)]
pub struct Console {
    output: Output,
    bars: MultiProgress,
}

impl Console {
    /// Also sets up logging: to people beside a progress bar, to files and pipes as JSON where the output is JSON.
    pub fn new(output: Output) -> Self {
        let console = Self { output, bars: MultiProgress::new() };
        let level = if console.is_attended() { "warn" } else { "info" };
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
        let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(console.clone());
        // A second time only in tests, where the first one stays.
        let _ = match output {
            Output::Text => logs.with_ansi(console.is_attended()).with_target(false).try_init(),
            Output::Json => logs.json().try_init(),
        };
        console
    }

    /// True if somebody is watching standard error.
    pub fn is_attended(&self) -> bool {
        self.output == Output::Text && io::stderr().is_terminal()
    }

    /// Prints a result.
    pub fn print(&self, result: &(impl Display + Serialize)) -> anyhow::Result<()> {
        let line = match self.output {
            Output::Text => result.to_string(),
            Output::Json => serde_json::to_string(result)?,
        };
        self.bars.suspend(|| {
            let mut out = io::stdout().lock();
            writeln!(out, "{line}")?;
            out.flush()
        })?;
        Ok(())
    }

    /// Says why the command failed.
    pub fn failed(&self, error: &anyhow::Error) {
        let _ = match self.output {
            Output::Text => writeln!(io::stderr(), "tidb-sim: {error:#}"),
            Output::Json => {
                let message = serde_json::json!({ "event": "failed", "error": format!("{error:#}") });
                writeln!(io::stdout(), "{message}")
            }
        };
    }

    /// A bar over `length` records, hidden if nobody watches.
    pub fn bar(&self, length: u64) -> ProgressBar {
        if !self.is_attended() {
            return ProgressBar::hidden();
        }
        let bar = self.bars.add(ProgressBar::new(length));
        if let Ok(style) = ProgressStyle::with_template(
            "{bar:30.cyan/blue} {human_pos}/{human_len} records  {per_sec}  {msg}  {elapsed}",
        ) {
            bar.set_style(style);
        }
        bar
    }
}

impl MakeWriter<'_> for Console {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl Write for Console {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.bars.suspend(|| io::stderr().write(line))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
