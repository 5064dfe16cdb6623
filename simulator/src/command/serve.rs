//! `tidb-sim serve`: the stand-ins alone.

use std::process::ExitCode;

use clap::Args;
use node::shutdown::Shutdown;

use super::{Console, Ready, StageArgs};
use crate::stage::Stage;

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    pub(super) stage: StageArgs,
}

pub(super) async fn run(args: ServeArgs, console: &Console, shutdown: &Shutdown) -> anyhow::Result<ExitCode> {
    let stage = Stage::live(&args.stage.options()).await?;
    console.print(&Ready::of(&stage))?;
    shutdown.cancelled().await;
    Ok(ExitCode::SUCCESS)
}
