//! Measures pumps, stores and disks. See `sluice-bench --help`.

use std::process::ExitCode;

use clap::Parser as _;

/// The measuring should cost little beside what is measured.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments = bench::command::Arguments::parse();
    // One thread: the machine's others belong to what is measured.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("sluice-bench: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(bench::run(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluice-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
