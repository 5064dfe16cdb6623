//! `generate_meta`: where a new drainer shall start.

use anyhow::Context as _;
use serde_json::json;
use tidb::ts::CommitTs;

use super::args::Args;
use super::{Report, list};
use crate::pd::Pd;
use crate::savepoint;

pub(super) async fn generate(args: &Args, pd: &Pd) -> anyhow::Result<Report> {
    let now = pd.tso().await?;
    let commit_ts = CommitTs(now);
    let data_dir = args.data_dir.clone();
    tokio::task::spawn_blocking(move || savepoint::write(&data_dir, commit_ts))
        .await
        .context("writing the savepoint")??;
    let file = savepoint::path(&args.data_dir);
    let time = list::time(now, &args.time_zone);
    Ok(Report {
        text: format!("commitTS = {commit_ts}\n({time}; written to {})", file.display()),
        json: json!({ "CommitTS": commit_ts, "Time": time, "File": file }),
    })
}
