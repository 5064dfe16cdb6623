//! `drainer-kafka`: merges the binlogs of all pumps and writes them to Kafka.

use std::process::ExitCode;

use drainer_kafka::config::{Config, Flags};
use node::shutdown::Shutdown;
use node::telemetry::Telemetry;

fn main() -> ExitCode {
    let config = match Flags::from_command_line(std::env::args_os()).resolve() {
        Ok(config) => config,
        Err(error) => return fail(&error),
    };
    let telemetry = match Telemetry::init(&config.log()) {
        Ok(telemetry) => telemetry,
        Err(error) => return fail(&error),
    };
    match serve(config, telemetry) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("{error:#}")),
    }
}

fn serve(config: Config, telemetry: Telemetry) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let result =
        runtime.block_on(async move { drainer_kafka::run(config, telemetry, Shutdown::on_signals()?).await });
    // A call into librdkafka that waits for a broker must not keep the process; the successor settles what it was at.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    result
}

fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("drainer-kafka: {error}");
    ExitCode::from(2)
}
