//! `binlogctl ddl`: an operator's word on a schema change at which an `apply-mysql` stopped.
//!
//! It asks the process itself, at its admin listener, and needs neither PD nor etcd: the process waits and goes on as soon
//! as it is told, without a restart. Whatever changes something wants the listener's token.

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};

use super::args::{Common, Output};
use super::{Report, ask};

/// Decides about a schema change at which an apply-mysql stopped.
#[derive(Debug, Parser)]
#[command(name = "binlogctl ddl", after_help = "Exit status: 0 done, 1 failed, 2 wrong usage.")]
pub(super) struct DdlArgs {
    #[command(subcommand)]
    word: Word,

    /// The admin listener of apply-mysql, `host:port`.
    #[arg(long, global = true, value_name = "ADDR", default_value = "127.0.0.1:8261")]
    addr: String,

    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Debug, Subcommand)]
enum Word {
    /// Show the schema change that waits, if one does.
    Show,
    /// Leave the schema change out and go on.
    Skip {
        /// Its job id, as the message says.
        #[arg(long, value_name = "ID")]
        job: i64,
    },
    /// Run another statement in its place and go on.
    Replace {
        /// Its job id, as the message says.
        #[arg(long, value_name = "ID")]
        job: i64,
        /// The statement to run on the target.
        #[arg(long, value_name = "SQL")]
        statement: String,
    },
}

impl DdlArgs {
    pub(super) fn output(&self) -> Output {
        self.common.output
    }
}

pub(super) async fn decide(args: &DdlArgs) -> anyhow::Result<Report> {
    match &args.word {
        Word::Show => {
            let answer = ask(args, &["ddl"], None).await?;
            let stopped = &answer["stopped"];
            let text = match stopped["job_id"].as_i64() {
                Some(job) => format!(
                    "job {job} waits for a word\n  statement: {}\n  reason:    {}",
                    stopped["statement"].as_str().unwrap_or_default(),
                    stopped["reason"].as_str().unwrap_or_default()
                ),
                None => "no schema change waits".to_owned(),
            };
            Ok(Report { text, json: stopped.clone() })
        }
        Word::Skip { job } => {
            ask(args, &["ddl", &job.to_string(), "skip"], Some(String::new())).await?;
            Ok(Report {
                text: format!("the schema change of job {job} is left out"),
                json: json!({ "job_id": job, "action": "skip" }),
            })
        }
        Word::Replace { job, statement } => {
            ask(args, &["ddl", &job.to_string(), "replace"], Some(statement.clone())).await?;
            Ok(Report {
                text: format!("for the schema change of job {job} runs: {statement}"),
                json: json!({ "job_id": job, "action": "replace", "statement": statement }),
            })
        }
    }
}

/// Asks the admin listener; with a body it is a change.
async fn ask(args: &DdlArgs, path: &[&str], body: Option<String>) -> anyhow::Result<Value> {
    let method = if body.is_some() { Method::POST } else { Method::GET };
    let asked = ask::ask(&args.common, "apply-mysql", &args.addr, method, path, body).await?;
    let answer: Option<Value> = serde_json::from_slice(&asked.body).ok();
    if asked.status.is_success() {
        return answer.with_context(|| format!("{} does not answer as an apply-mysql does", args.addr));
    }
    let said = asked.text();
    let reason = answer.as_ref().and_then(|answer| answer["error"].as_str()).unwrap_or(&said);
    match answer.as_ref().and_then(|answer| answer["waiting_job_id"].as_i64()) {
        Some(job) => bail!("{reason}; job {job} is"),
        None => bail!("{reason} ({})", asked.status),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::args::go_style;

    fn parse(words: &[&str]) -> Result<DdlArgs, clap::Error> {
        DdlArgs::try_parse_from(go_style(words.iter().map(Into::into)))
    }

    #[test]
    fn definition() {
        DdlArgs::command().debug_assert();
    }

    #[test]
    fn words() {
        let args = parse(&["ddl", "replace", "-job", "7", "-statement", "ALTER TABLE `t` -- x", "-addr=h:1"])
            .unwrap();
        assert_eq!(args.addr, "h:1");
        assert!(
            matches!(args.word, Word::Replace { job: 7, statement } if statement == "ALTER TABLE `t` -- x")
        );
        let args = parse(&["ddl", "--addr", "h:1", "skip", "--job", "7", "--token", "x"]).unwrap();
        assert!(matches!(args.word, Word::Skip { job: 7 }) && args.common.token.is_some());
        assert!(matches!(parse(&["ddl", "show"]).unwrap().word, Word::Show));
        for wrong in [
            &["ddl"][..],
            &["ddl", "skip"],
            &["ddl", "skip", "--job", "x"],
            &["ddl", "replace", "--job", "1"],
        ] {
            assert_eq!(parse(wrong).unwrap_err().exit_code(), 2, "{wrong:?}");
        }
    }
}
