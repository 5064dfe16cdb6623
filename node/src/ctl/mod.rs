//! `binlogctl`: what an operator asks of the nodes, in the original's words.
//!
//! Both `binlogctl -pd-urls U -cmd pumps` and `binlogctl pumps -pd-urls U` work. Results go to standard output, as a table
//! or as JSON; errors to standard error. Unlike the original it reads what a node answers: a refusal is a failure. Exit
//! status: 0 done, 1 failed, 2 wrong usage.

mod args;
mod ask;
mod ddl;
mod list;
mod meta;
mod settle;
mod state;
mod table;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use clap::error::ErrorKind;
use serde_json::{Value, json};

use crate::pd::Pd;
use crate::registry::{NodeKind, Registry};
use args::{Action, Args, Output};
use ddl::DdlArgs;
use settle::SettleArgs;

/// What a command has to say, in both forms.
struct Report {
    text: String,
    json: Value,
}

enum Command {
    Node(Box<Args>),
    Ddl(DdlArgs),
    Settle(SettleArgs),
}

/// Runs one command line (the program's name first). Prints; never panics.
pub async fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut arguments = crate::args::go_style(arguments);
    // Commands to one process's admin listener are families of their own: they need no PD.
    let family = arguments.get(1).and_then(|word| word.to_str()).unwrap_or_default();
    let parsed = match family {
        "ddl" => DdlArgs::try_parse_from(arguments.split_off(1)).map(Command::Ddl),
        "settle" => SettleArgs::try_parse_from(arguments.split_off(1))
            .and_then(|args| args.checked(settle::at_a_terminal()))
            .map(Command::Settle),
        _ => {
            let args = Args::try_parse_from(arguments).and_then(Args::checked);
            args.map(|args| Command::Node(Box::new(args)))
        }
    };
    let command = match parsed {
        Ok(command) => command,
        Err(error) => {
            // Help and version come this way too. If even that cannot be printed, the status still tells.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(2),
            };
        }
    };
    let (result, output) = match &command {
        Command::Node(args) => (perform(args).await, args.common.output),
        Command::Ddl(args) => (ddl::decide(args).await, args.output()),
        Command::Settle(args) => (settle::decide(args).await, args.output()),
    };
    match result.and_then(|report| print(output, &report)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = match output {
                Output::Table => format!("binlogctl: {error:#}"),
                Output::Json => json!({ "error": format!("{error:#}") }).to_string(),
            };
            let _ = writeln!(io::stderr(), "{text}");
            ExitCode::FAILURE
        }
    }
}

async fn perform(args: &Args) -> anyhow::Result<Report> {
    let pd = Pd::connect(&args.pd_urls, &args.common.security())
        .await
        .with_context(|| format!("cannot reach PD at {}", args.pd_urls.join(",")))?;
    let registry = Registry::new(pd.etcd());
    match args.action() {
        Action::Pumps => list::list(args, &pd, &registry, NodeKind::Pump).await,
        Action::Drainers => list::list(args, &pd, &registry, NodeKind::Drainer).await,
        Action::GenerateMeta => meta::generate(args, &pd).await,
        Action::UpdatePump => state::update(args, &registry, NodeKind::Pump).await,
        Action::UpdateDrainer => state::update(args, &registry, NodeKind::Drainer).await,
        Action::PausePump => state::apply(args, &registry, NodeKind::Pump, state::Change::Pause).await,
        Action::PauseDrainer => state::apply(args, &registry, NodeKind::Drainer, state::Change::Pause).await,
        Action::OfflinePump => state::apply(args, &registry, NodeKind::Pump, state::Change::Close).await,
        Action::OfflineDrainer => {
            state::apply(args, &registry, NodeKind::Drainer, state::Change::Close).await
        }
    }
}

fn print(output: Output, report: &Report) -> anyhow::Result<()> {
    let text = match output {
        Output::Table => report.text.trim_end().to_owned(),
        Output::Json => serde_json::to_string_pretty(&report.json)?,
    };
    match writeln!(io::stdout(), "{text}") {
        // Whoever reads us has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot print the result"),
    }
}
