//! `with-kafka COMMAND…`: runs a command with one Kafka broker for everything in it, and stops the broker afterwards.
//!
//! The test runner starts a process per test; this keeps them from starting a broker each.

use std::{env, process::ExitCode};

use anyhow::{Context as _, Result};
use e2e::harness::{
    kafka::{Kafka, SHARED},
    scratch::Scratch,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode> {
    let mut args = env::args_os().skip(1);
    let command = args.next().context("usage: with-kafka COMMAND [ARGS…]")?;
    let scratch = Scratch::new("kafka")?;
    let kafka = Kafka::start(&scratch).await?;
    let status = tokio::process::Command::new(&command)
        .args(args)
        .env(SHARED, kafka.brokers())
        .status()
        .await
        .with_context(|| format!("run {}", command.display()))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
