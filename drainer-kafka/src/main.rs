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

#[tokio::main]
async fn serve(config: Config, telemetry: Telemetry) -> anyhow::Result<()> {
    drainer_kafka::run(config, telemetry, Shutdown::on_signals()?).await
}

fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("drainer-kafka: {error}");
    ExitCode::from(2)
}
