//! `binlogctl settle`: an operator's word on a transaction whose end a pump cannot find out.
//!
//! Like `ddl` it asks the process itself, at its admin listener, and needs neither PD nor etcd. The word cannot be taken
//! back, so the pump is looked at first, what the word will do is said, and it is given only when that was agreed to: at the
//! terminal, or beforehand with `--yes`.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use anyhow::{Context as _, bail};
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand};
use jiff::tz::TimeZone;
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;
use tidb::ts::Tso;

use super::args::{Common, Output};
use super::ask::ask;
use super::list::time;
use super::{Report, args};

/// Says what became of a transaction that holds a pump's watermark.
#[derive(Debug, Parser)]
#[command(name = "binlogctl settle", after_help = "Exit status: 0 done, 1 failed, 2 wrong usage.")]
pub(super) struct SettleArgs {
    #[command(subcommand)]
    word: Word,

    /// The admin listener of the pump, `host:port`.
    #[arg(long, global = true, value_name = "ADDR", default_value = "127.0.0.1:8251")]
    addr: String,

    /// Do it without asking.
    #[arg(long, global = true)]
    yes: bool,

    /// Zone of the times that are shown, such as Asia/Shanghai.
    #[arg(long, global = true, value_name = "ZONE", default_value = "UTC", value_parser = args::zone)]
    time_zone: TimeZone,

    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Clone, Debug, Subcommand)]
enum Word {
    /// Show what holds the pump's watermark.
    Show,
    /// It committed: the pump emits it at this commit_ts.
    Committed {
        #[command(flatten)]
        of: Of,
        /// Its commit_ts.
        #[arg(long, value_name = "TSO")]
        commit_ts: u64,
    },
    /// It was rolled back: the pump drops it.
    RolledBack {
        #[command(flatten)]
        of: Of,
    },
    /// Nobody knows: the pump declares a gap in its place.
    Lost {
        #[command(flatten)]
        of: Of,
    },
}

#[derive(Clone, Copy, Debug, clap::Args)]
struct Of {
    /// The transaction's start_ts, as `show` and the pump's /status name it.
    #[arg(long, value_name = "TSO")]
    start_ts: u64,
}

/// What a pump's `/status` says, of which this command makes use.
#[derive(Debug, Deserialize)]
struct Status {
    node_id: Option<String>,
    state: String,
    watermark: Option<u64>,
    watermark_lag_seconds: Option<f64>,
    pending: Option<u64>,
    holding_watermark: Option<Holding>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct Holding {
    start_ts: u64,
    floor: u64,
}

/// A pump that has started.
#[derive(Debug)]
struct Pump {
    node_id: String,
    state: String,
    watermark: u64,
    lag: f64,
    pending: u64,
    holding: Option<Holding>,
}

impl SettleArgs {
    pub(super) fn output(&self) -> Output {
        self.common.output
    }

    /// What clap cannot check: a change that nobody can be asked about.
    pub(super) fn checked(self, terminal: bool) -> Result<Self, clap::Error> {
        if self.yes || terminal || matches!(self.word, Word::Show) {
            return Ok(self);
        }
        let text = "this cannot be taken back, and there is no terminal to ask at: say --yes";
        Err(Self::command().error(ErrorKind::MissingRequiredArgument, text))
    }
}

/// True if questions can be put to somebody.
pub(super) fn at_a_terminal() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

pub(super) async fn decide(args: &SettleArgs) -> anyhow::Result<Report> {
    let pump = look(args).await?;
    let (start_ts, verdict, what, commit_ts) = match args.word {
        Word::Show => return Ok(show(&pump, &args.time_zone)),
        Word::Committed { of, commit_ts } => {
            (of.start_ts, "committed", format!("is emitted at commit_ts {commit_ts}"), Some(commit_ts))
        }
        Word::RolledBack { of } => (of.start_ts, "rolled-back", "is dropped".to_owned(), None),
        Word::Lost { of } => {
            (of.start_ts, "lost", "is declared lost: drainers get a gap in its place".to_owned(), None)
        }
    };
    if !args.yes {
        let plan = plan(&pump, start_ts, &what);
        if !tokio::task::spawn_blocking(move || agreed(&plan)).await.context("asking")?? {
            bail!("nothing was changed");
        }
    }
    let (start, commit) = (start_ts.to_string(), commit_ts.map(|commit_ts| commit_ts.to_string()));
    let mut path = vec!["settle", start.as_str(), verdict];
    path.extend(commit.as_deref());
    let answer = ask(&args.common, "the pump", &args.addr, Method::PUT, &path, None).await?;
    if !answer.status.is_success() {
        bail!("pump {} refuses: {} ({})", pump.node_id, answer.text(), answer.status);
    }
    Ok(Report {
        text: format!("pump {}: {}; it {what}", pump.node_id, answer.text()),
        json: json!({
            "node_id": pump.node_id, "start_ts": start_ts, "verdict": verdict, "commit_ts": commit_ts,
            "message": answer.text(),
        }),
    })
}

async fn look(args: &SettleArgs) -> anyhow::Result<Pump> {
    let answer = ask(&args.common, "the pump", &args.addr, Method::GET, &["status"], None).await?;
    if !answer.status.is_success() {
        bail!("the pump at {} answers {}: {}", args.addr, answer.status, answer.text());
    }
    pump(&answer.body).with_context(|| format!("the listener at {}", args.addr))
}

fn pump(page: &[u8]) -> anyhow::Result<Pump> {
    let no_pump = "does not answer as a pump does: give the pump's own admin listener";
    let status: Status = serde_json::from_slice(page).ok().context(no_pump)?;
    if status.state == "starting" {
        bail!("says that the pump is starting: it knows of no transaction yet");
    }
    Ok(Pump {
        node_id: status.node_id.context(no_pump)?,
        state: status.state,
        watermark: status.watermark.context(no_pump)?,
        lag: status.watermark_lag_seconds.context(no_pump)?,
        pending: status.pending.context(no_pump)?,
        holding: status.holding_watermark,
    })
}

fn show(pump: &Pump, zone: &TimeZone) -> Report {
    let Pump { node_id, state, watermark, lag, pending, holding } = pump;
    let at = |ts: u64| format!("{ts} ({})", time(Tso::new(ts), zone));
    let mut text =
        format!("pump {node_id}, {state}: its watermark is {}, {lag:.1} s behind PD", at(*watermark));
    match holding {
        Some(Holding { start_ts, floor }) => text.push_str(&format!(
            "\nheld by the transaction of start_ts {}\nwhich commits above {} if it does; {pending} are undecided",
            at(*start_ts),
            at(*floor)
        )),
        None => text.push_str("\nno transaction holds it: none is undecided"),
    }
    let held = holding.map(|Holding { start_ts, floor }| json!({ "start_ts": start_ts, "floor": floor }));
    let json = json!({
        "node_id": node_id, "state": state, "watermark": watermark, "watermark_lag_seconds": lag,
        "pending": pending, "holding_watermark": held,
    });
    Report { text, json }
}

/// What a word would do, for whoever has to agree.
fn plan(pump: &Pump, start_ts: u64, what: &str) -> String {
    let held = match pump.holding {
        Some(holding) if holding.start_ts == start_ts => "It holds the watermark.".to_owned(),
        Some(holding) => {
            format!("The watermark is held by start_ts {}, not by this one.", holding.start_ts)
        }
        None => "Nothing holds the watermark.".to_owned(),
    };
    format!(
        "On pump {}, the transaction of start_ts {start_ts} {what}.\n{held}\nThe pump believes this as it believes TiKV; it \
         cannot be taken back.",
        pump.node_id
    )
}

/// Asks at the terminal. Results alone go to standard output.
fn agreed(plan: &str) -> anyhow::Result<bool> {
    let mut terminal = io::stderr();
    write!(terminal, "{plan}\nDo it? [y/N] ").and_then(|()| terminal.flush()).context("cannot ask")?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
    Ok(is_yes(&answer))
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim(), "y" | "Y" | "yes" | "Yes" | "YES")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::go_style;

    fn parse(words: &[&str], terminal: bool) -> Result<SettleArgs, clap::Error> {
        SettleArgs::try_parse_from(go_style(words.iter().map(Into::into)))
            .and_then(|args| args.checked(terminal))
    }

    #[test]
    fn definition() {
        SettleArgs::command().debug_assert();
    }

    #[test]
    fn words() {
        let args =
            parse(&["settle", "committed", "-start-ts", "7", "-commit-ts=9", "-addr", "h:1", "-yes"], false)
                .unwrap();
        assert!(
            matches!(args.word, Word::Committed { of: Of { start_ts: 7 }, commit_ts: 9 }) && args.yes,
            "{args:?}"
        );
        assert_eq!(args.addr, "h:1");
        let args = parse(&["settle", "rolled-back", "--start-ts", "7"], true).unwrap();
        assert!(matches!(args.word, Word::RolledBack { of: Of { start_ts: 7 } }) && !args.yes);
        let args = parse(&["settle", "--token", "x", "lost", "--start-ts", "7"], true).unwrap();
        assert!(matches!(args.word, Word::Lost { .. }) && args.common.token.is_some());
        assert!(matches!(parse(&["settle", "show"], false).unwrap().word, Word::Show));
        for wrong in [
            &["settle"][..],
            &["settle", "lost", "--yes"],
            &["settle", "lost", "--start-ts", "x", "--yes"],
            &["settle", "committed", "--start-ts", "7", "--yes"],
            &["settle", "rolled-back", "--start-ts", "7", "--commit-ts", "9", "--yes"],
            &["settle", "perhaps", "--start-ts", "7", "--yes"],
            // Nobody could be asked.
            &["settle", "lost", "--start-ts", "7"],
        ] {
            assert_eq!(parse(wrong, false).unwrap_err().exit_code(), 2, "{wrong:?}");
        }
    }

    #[test]
    fn only_a_pump_is_told() {
        for (page, reason) in [
            ("no JSON", "does not answer as a pump"),
            (r#"{"state":"starting"}"#, "is starting"),
            (r#"{"state":"running","progress":{"commit_ts":7}}"#, "does not answer as a pump"),
        ] {
            let error = pump(page.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(reason), "{page}: {error}");
        }
    }

    #[test]
    fn what_is_agreed_to() {
        let page = r#"{"node_id":"p1","state":"online","watermark":5,"watermark_lag_seconds":1.5,"pending":2,
            "holding_watermark":{"start_ts":7,"floor":5}}"#;
        let pump = pump(page.as_bytes()).unwrap();
        let text = plan(&pump, 7, "is dropped");
        assert!(
            text.starts_with(
                "On pump p1, the transaction of start_ts 7 is dropped.\nIt holds the watermark."
            ),
            "{text}"
        );
        assert!(text.contains("cannot be taken back"), "{text}");
        assert!(plan(&pump, 8, "is dropped").contains("held by start_ts 7, not by this one"));
        for (answer, agreed) in
            [("y\n", true), ("yes\n", true), ("\n", false), ("", false), ("n\n", false), ("yeah\n", false)]
        {
            assert_eq!(is_yes(answer), agreed, "{answer:?}");
        }
    }
}
