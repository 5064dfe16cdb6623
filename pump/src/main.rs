//! `pump`: receives, stores and serves the binlogs of TiDB.

use std::process::ExitCode;
use std::time::Duration;

use node::shutdown::Shutdown;
use node::telemetry::Telemetry;
use pump::config::{Config, Flags};
use tokio::sync::oneshot;

/// A call makes and frees some dozens of small objects, a large binlog a few of its own size: glibc's allocator is a seventh
/// of what a call costs, and gives large buffers back to the kernel only to fault them in again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What still blocks a thread then is left behind: the store survives `kill -9`.
const LAST_WAIT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let config = match Flags::from_command_line(std::env::args_os()).resolve() {
        Ok(config) => config,
        Err(error) => return fail(&error),
    };
    let telemetry = match Telemetry::init(&config.log()) {
        Ok(telemetry) => telemetry,
        Err(error) => return fail(&error),
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let code = runtime.block_on(serve(config, telemetry));
    runtime.shutdown_timeout(LAST_WAIT);
    code
}

/// 0: ended as asked. 2: could not start. 1: broke later.
async fn serve(config: Config, telemetry: Telemetry) -> ExitCode {
    let shutdown = match Shutdown::on_signals() {
        Ok(shutdown) => shutdown,
        Err(error) => return fail(&error),
    };
    let (started, mut running) = oneshot::channel();
    match pump::run_with(config, telemetry, shutdown, started).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = fail(&format!("{error:#}"));
            if running.try_recv().is_ok() { ExitCode::FAILURE } else { code }
        }
    }
}

fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("pump: {error}");
    ExitCode::from(2)
}
