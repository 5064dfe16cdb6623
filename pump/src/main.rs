//! `pump`: receives, stores and serves the binlogs of TiDB.

use std::process::ExitCode;

use node::shutdown::Shutdown;
use node::telemetry::Telemetry;
use pump::config::{Config, Flags};

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
    pump::run(config, telemetry, Shutdown::on_signals()?).await
}

fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("pump: {error}");
    ExitCode::from(2)
}
