//! See [`node::ctl`].

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    node::ctl::run(std::env::args_os()).await
}
