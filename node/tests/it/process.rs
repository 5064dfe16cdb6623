//! What belongs to the whole process: signals, logs.

use nix::sys::signal::{Signal, raise};
use node::shutdown::Shutdown;
use node::telemetry::{LogConfig, LogFormat, Telemetry};
use serde_json::Value;

use crate::rig::soon;

#[tokio::test]
async fn a_signal_asks_for_the_end() {
    let shutdown = Shutdown::on_signals().unwrap();
    assert!(!shutdown.is_cancelled());
    raise(Signal::SIGHUP).unwrap();
    soon("the wish to end", shutdown.cancelled()).await;
}

#[test]
fn logs_are_json_at_the_level_that_is_set() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pump.log");
    let config = LogConfig { level: "warn".to_owned(), format: LogFormat::Json, file: Some(file.clone()) };
    let telemetry = Telemetry::init(&config).unwrap();
    tracing::info!("not yet");
    tracing::warn!(commit_ts = 7, "seen");
    telemetry.set_level("info").unwrap();
    tracing::info!("seen, too");
    std::thread::spawn(|| panic!("out of order")).join().unwrap_err();
    let lines: Vec<Value> = std::fs::read_to_string(&file)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert_eq!((&lines[0]["level"], &lines[0]["commit_ts"]), (&"WARN".into(), &7.into()));
    assert_eq!(lines[0]["message"], "seen");
    assert_eq!(lines[1]["message"], "seen, too");
    // A panic is in the log as well.
    assert_eq!((&lines[2]["reason"], &lines[2]["level"]), (&"out of order".into(), &"ERROR".into()));

    metrics::counter!("binlog_pump_loss_binlog_count").increment(3);
    assert!(telemetry.render_metrics().contains("binlog_pump_loss_binlog_count 3"));
    assert!(Telemetry::init(&config).is_err());
}
