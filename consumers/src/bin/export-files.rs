//! Exports a feed to files.

use std::process::ExitCode;

use clap::Parser as _;
use consumers::files::{Args, Config, run};
use node::shutdown::Shutdown;
use node::telemetry::Telemetry;

fn main() -> ExitCode {
    let args = Args::parse_from(node::args::go_style(std::env::args_os()));
    let check = args.check;
    let config = match Config::from_args(args) {
        Ok(config) if check => {
            eprintln!("the configuration of {} is fine", config.name);
            return ExitCode::SUCCESS;
        }
        Ok(config) => config,
        Err(error) => {
            eprintln!("export-files: {error:#}");
            return ExitCode::from(2);
        }
    };
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "stopped");
            eprintln!("export-files: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(config: Config) -> anyhow::Result<()> {
    let telemetry = Telemetry::init(&config.log())?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async { run(config, telemetry, Shutdown::on_signals()?).await })
}
