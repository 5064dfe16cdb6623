//! `tidb-sim`: stands in for TiDB, PD and TiKV.

use std::process::ExitCode;

use clap::Parser as _;
use node::shutdown::Shutdown;
use simulator::command::{Cli, Console, run};

fn main() -> ExitCode {
    let cli = Cli::parse_from(node::args::go_style(std::env::args_os()));
    let console = Console::new(cli.output());
    match start(cli, &console) {
        Ok(code) => code,
        Err(error) => {
            console.failed(&error);
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli, console: &Console) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let code = runtime.block_on(async {
        let shutdown = Shutdown::on_signals()?;
        run(cli, console, &shutdown).await
    });
    // Connections of the stand-ins end with the process.
    runtime.shutdown_background();
    code
}
