//! `sluice-demo`: see `make demo`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser as _;
use e2e::demo::{self, Options};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode> {
    let equal = demo::run(Options::parse()).await?;
    Ok(if equal { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
