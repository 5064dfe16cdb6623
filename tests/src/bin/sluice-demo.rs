//! `sluice-demo`: see `make demo`.

use std::process::ExitCode;

use clap::Parser as _;
use e2e::demo::{self, Options};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match demo::run(Options::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("sluice-demo: {error:#}");
            ExitCode::from(2)
        }
    }
}
