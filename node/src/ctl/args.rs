//! The command line: the original's flags, and a shorter form.

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{ArgAction, CommandFactory as _, Parser, ValueEnum};
use jiff::tz::TimeZone;

use crate::config::{HumanDuration, Secret};
use crate::registry::NodeState;
use crate::tls::Security;

/// Lists and steers the pumps and drainers of a cluster.
#[derive(Debug, Parser)]
#[command(
    name = "binlogctl",
    version,
    disable_version_flag = true,
    after_help = "Flags may be written with one dash, as TiDB Binlog's binlogctl has them: -pd-urls, -cmd, -node-id.\n\
                  binlogctl ddl --help: deciding about a schema change at which an apply-mysql stopped.\n\
                  binlogctl settle --help: what became of a transaction that holds a pump's watermark.\n\
                  Exit status: 0 done, 1 failed, 2 wrong usage."
)]
pub(super) struct Args {
    /// What to do (or -cmd); pumps if neither is given.
    #[arg(value_enum, value_name = "COMMAND")]
    command: Option<Action>,

    /// The node that a command is about (or -node-id).
    #[arg(value_name = "NODE-ID")]
    node: Option<String>,

    /// What to do.
    #[arg(long, value_enum, value_name = "COMMAND", hide_possible_values = true)]
    cmd: Option<Action>,

    /// PD's client addresses, separated by commas.
    #[arg(long, env = "BINLOGCTL_PD_URLS", value_delimiter = ',', default_value = "http://127.0.0.1:2379")]
    pub(super) pd_urls: Vec<String>,

    /// The node that a command is about.
    #[arg(long, value_name = "ID")]
    node_id: Option<String>,

    /// For update-pump and update-drainer: online, pausing, paused, closing or offline.
    #[arg(long)]
    pub(super) state: Option<NodeState>,

    /// For pumps and drainers: show those that are offline, too.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true",
          action = ArgAction::Set, value_name = "BOOL")]
    pub(super) show_offline_nodes: bool,

    /// For generate_meta: the directory that gets the file `savepoint`.
    #[arg(long, value_name = "DIR", default_value = "binlog_position")]
    pub(super) data_dir: PathBuf,

    /// Zone of the times that are shown, such as Asia/Shanghai.
    #[arg(long, value_name = "ZONE", default_value = "UTC", value_parser = zone)]
    pub(super) time_zone: TimeZone,

    /// For pause- and offline-: wait until the node has got there, up to this long (5m if no time is given).
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "5m", value_name = "TIME")]
    pub(super) wait: Option<HumanDuration>,

    #[command(flatten)]
    pub(super) common: Common,

    /// Text for `encrypt`, which is not offered.
    #[arg(long, hide = true)]
    text: Option<String>,

    /// Print the version.
    #[arg(short = 'V', long, action = ArgAction::Version)]
    version: Option<bool>,
}

/// Flags of every command.
#[derive(Debug, clap::Args)]
pub(super) struct Common {
    /// Bearer token for nodes that want one: env:NAME, file:/path, or the token itself.
    #[arg(long, global = true, env = "BINLOGCTL_TOKEN", hide_env_values = true)]
    pub(super) token: Option<Secret>,

    /// PEM file of the authorities that sign the cluster's certificates; switches TLS on.
    #[arg(long, global = true, value_name = "FILE")]
    ssl_ca: Option<PathBuf>,

    /// PEM file of our certificate.
    #[arg(long, global = true, value_name = "FILE", requires = "ssl_key")]
    ssl_cert: Option<PathBuf>,

    /// PEM file of its key.
    #[arg(long, global = true, value_name = "FILE", requires = "ssl_cert")]
    ssl_key: Option<PathBuf>,

    /// How results are printed.
    #[arg(long, global = true, value_enum, default_value_t = Output::Table)]
    pub(super) output: Output,
}

impl Common {
    pub(super) fn security(&self) -> Security {
        Security {
            ssl_ca: self.ssl_ca.clone(),
            ssl_cert: self.ssl_cert.clone(),
            ssl_key: self.ssl_key.clone(),
            cert_allowed_cn: Vec::new(),
        }
    }
}

/// What can be asked for; the original's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Action {
    /// List the pumps.
    Pumps,
    /// List the drainers.
    Drainers,
    /// Write PD's present timestamp as a drainer's first savepoint.
    #[value(name = "generate_meta", alias = "generate-meta")]
    GenerateMeta,
    /// Rewrite only the state in etcd; the process is not told.
    UpdatePump,
    /// The same for a drainer.
    UpdateDrainer,
    /// Ask the pump to stop; it will be back.
    PausePump,
    /// Ask the drainer to stop; it will be back.
    PauseDrainer,
    /// Ask the pump to leave once everything in it is drained.
    OfflinePump,
    /// Ask the drainer to leave.
    OfflineDrainer,
}

impl Action {
    fn needs_node(self) -> bool {
        match self {
            Self::Pumps | Self::Drainers | Self::GenerateMeta => false,
            Self::UpdatePump
            | Self::UpdateDrainer
            | Self::PausePump
            | Self::PauseDrainer
            | Self::OfflinePump
            | Self::OfflineDrainer => true,
        }
    }
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// A zone by its name.
pub(super) fn zone(name: &str) -> Result<TimeZone, String> {
    TimeZone::get(name).map_err(|error| error.to_string())
}

impl Args {
    /// What clap cannot check.
    pub(super) fn checked(self) -> Result<Self, clap::Error> {
        let wrong = |text: &str| Err(Self::command().error(ErrorKind::ArgumentConflict, text));
        let missing = |text: &str| Err(Self::command().error(ErrorKind::MissingRequiredArgument, text));
        if let (Some(command), Some(cmd)) = (self.command, self.cmd)
            && command != cmd
        {
            return wrong("two different commands are given, once by name and once by -cmd");
        }
        if let (Some(node), Some(id)) = (&self.node, &self.node_id)
            && node != id
        {
            return wrong("two different nodes are given, once by name and once by -node-id");
        }
        let action = self.action();
        if action.needs_node() && self.node_id().is_empty() {
            return missing("this command needs -node-id");
        }
        if !action.needs_node() && self.node.is_some() {
            return wrong("this command is not about a single node");
        }
        if matches!(action, Action::UpdatePump | Action::UpdateDrainer) && self.state.is_none() {
            return missing("this command needs -state: online, pausing, paused, closing or offline");
        }
        if self.text.is_some() {
            return wrong(
                "-text belongs to encrypt, which is not offered: give passwords as env:NAME or file:/path",
            );
        }
        Ok(self)
    }

    pub(super) fn action(&self) -> Action {
        self.command.or(self.cmd).unwrap_or(Action::Pumps)
    }

    /// Empty if none is given.
    pub(super) fn node_id(&self) -> &str {
        self.node.as_deref().or(self.node_id.as_deref()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::go_style;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(go_style(line.split_whitespace().map(Into::into))).and_then(Args::checked)
    }

    #[test]
    fn definition() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_originals_forms_and_the_short_ones() {
        let args =
            parse("binlogctl -pd-urls=http://a:1,http://b:2 -cmd offline-pump -node-id p:8250").unwrap();
        assert_eq!(args.pd_urls, ["http://a:1", "http://b:2"]);
        assert_eq!((args.action(), args.node_id()), (Action::OfflinePump, "p:8250"));
        let args = parse("binlogctl offline-pump p:8250 --wait").unwrap();
        assert_eq!((args.action(), args.node_id()), (Action::OfflinePump, "p:8250"));
        assert_eq!(args.wait, Some(HumanDuration::from_secs(300)));
        let args = parse("binlogctl -cmd update-drainer -node-id d -state paused").unwrap();
        assert_eq!((args.action(), args.state), (Action::UpdateDrainer, Some(NodeState::Paused)));
        let args = parse("binlogctl -cmd generate_meta -data-dir /x").unwrap();
        assert_eq!((args.action(), args.data_dir), (Action::GenerateMeta, PathBuf::from("/x")));
        assert_eq!(parse("binlogctl").unwrap().action(), Action::Pumps);
        for (line, shown) in [
            ("binlogctl drainers", false),
            ("binlogctl drainers -show-offline-nodes", true),
            ("binlogctl -show-offline-nodes drainers", true),
            ("binlogctl drainers -show-offline-nodes=false", false),
        ] {
            assert_eq!(parse(line).unwrap().show_offline_nodes, shown, "{line}");
        }
    }

    #[test]
    fn wrong_usage() {
        for line in [
            "binlogctl pause-pump",
            "binlogctl -cmd update-pump -node-id p",
            "binlogctl update-pump p -state drunk",
            "binlogctl pumps -cmd drainers",
            "binlogctl pumps p",
            "binlogctl pause-pump p -node-id q",
            "binlogctl -cmd encrypt -text abc",
            "binlogctl -cmd pumps -unheard-of",
            "binlogctl -ssl-cert x",
            "binlogctl -time-zone Middle/Earth",
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}: {error}");
        }
    }
}
