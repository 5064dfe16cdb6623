//! What the container set-up looks like: order, health checks, versions, open ports.

use std::{collections::BTreeMap, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::house::root;

/// The compose command of this machine: the plugin, else Debian's older program.
fn compose() -> Option<Vec<&'static str>> {
    [vec!["docker", "compose"], vec!["docker-compose"]].into_iter().find(|command| {
        let asked = Command::new(command[0]).args(&command[1..]).arg("version").output();
        asked.is_ok_and(|output| output.status.success())
    })
}

/// A service as `config` prints it.
#[derive(Debug, Default)]
struct Service {
    is_checked: bool,
    /// What has to be there before, and in which condition.
    after: BTreeMap<String, String>,
}

/// The services of `config`'s output: `services:`, then names, keys and dependencies, each two spaces further in.
fn services(text: &str) -> BTreeMap<String, Service> {
    let mut services: BTreeMap<String, Service> = BTreeMap::new();
    let (mut section, mut name, mut key, mut dependency) = ("", "", "", "");
    for line in text.lines() {
        let trimmed = line.trim_start();
        if trimmed.is_empty() {
            continue;
        }
        let word = trimmed.split(':').next().unwrap_or_default();
        match line.len() - trimmed.len() {
            0 => section = word,
            2 => name = word,
            4 => key = word,
            6 => dependency = word,
            _ => {}
        }
        if section != "services" || trimmed == line {
            continue;
        }
        let service = services.entry(name.to_owned()).or_default();
        service.is_checked |= key == "healthcheck";
        if key == "depends_on"
            && let Some(condition) = trimmed.strip_prefix("condition: ")
        {
            service.after.insert(dependency.to_owned(), condition.to_owned());
        }
    }
    services
}

/// Each service and what it waits for.
const FULL: &[(&str, &[&str])] = &[
    ("pd", &[]),
    ("kafka", &[]),
    ("standby", &[]),
    ("tikv", &["pd"]),
    ("pump-0", &["pd"]),
    ("pump-1", &["pd"]),
    // With binlog on it does not take a write before it has a pump.
    ("tidb", &["tikv", "pump-0", "pump-1"]),
    ("drainer-kafka", &["kafka", "tidb"]),
    ("standby-account", &["standby"]),
    ("apply-mysql", &["drainer-kafka", "standby-account"]),
    ("export-files", &["drainer-kafka"]),
];

const LITE: &[(&str, &[&str])] = &[
    ("etcd", &[]),
    ("kafka", &[]),
    ("mariadb", &[]),
    ("tidb-sim", &["etcd"]),
    ("lite-pump-0", &["tidb-sim"]),
    ("lite-pump-1", &["tidb-sim"]),
    ("lite-drainer-kafka", &["kafka", "lite-pump-0", "lite-pump-1"]),
    ("lite-apply-mysql", &["lite-drainer-kafka", "mariadb"]),
    ("lite-export-files", &["lite-drainer-kafka"]),
];

/// Valid, with exactly these services, each started once those before it are well, and each telling whether it is.
#[test]
fn both_compose_profiles_start_in_order() -> Result<()> {
    /// Runs once and ends.
    const JOB: &str = "standby-account";
    let command =
        compose().context("neither `docker compose` nor `docker-compose` is there: run `make setup-test`")?;
    for (profile, expected) in [("full", FULL), ("lite", LITE)] {
        let output = Command::new(command[0])
            .args(&command[1..])
            .args(["--profile", profile, "config"])
            .current_dir(root())
            .output()?;
        ensure!(output.status.success(), "profile {profile}: {}", String::from_utf8_lossy(&output.stderr));
        let found = services(&String::from_utf8_lossy(&output.stdout));
        // The older program prints the services of every profile.
        for (name, after) in expected {
            let service = found
                .get(*name)
                .with_context(|| format!("profile {profile} has no {name}, but {:?}", found.keys()))?;
            ensure!(
                service.is_checked == (*name != JOB),
                "{name}: has a health check: {}",
                service.is_checked
            );
            let condition =
                |name: &str| if name == JOB { "service_completed_successfully" } else { "service_healthy" };
            let expected: BTreeMap<String, String> =
                after.iter().map(|name| ((*name).to_owned(), condition(name).to_owned())).collect();
            ensure!(service.after == expected, "{name} waits for {:?}, expected {expected:?}", service.after);
        }
        let strangers: Vec<&String> =
            found.keys().filter(|name| !FULL.iter().chain(LITE).any(|(known, _)| known == name)).collect();
        ensure!(strangers.is_empty(), "profile {profile} has {strangers:?}, which nobody expects");
    }
    Ok(())
}

#[test]
fn compose_pins_images_and_binds_loopback_only() -> Result<()> {
    let text = std::fs::read_to_string(root().join("docker-compose.yml"))?;
    let (mut images, mut ports) = (0, 0);
    for line in text.lines().map(str::trim) {
        if let Some(image) = line.strip_prefix("image: ") {
            images += 1;
            let (_, tag) = image.rsplit_once(':').with_context(|| format!("{image} has no version"))?;
            ensure!(
                image == "sluice:dev" || tag.contains(|c: char| c.is_ascii_digit()),
                "{image}: a floating version"
            );
        }
        if let Some(list) = line.strip_prefix("ports: ") {
            for port in list.trim_matches(['[', ']']).split(", ") {
                ports += 1;
                ensure!(port.starts_with("\"127.0.0.1:"), "port {port} is open to the network");
            }
        }
    }
    ensure!(images >= 8 && ports >= 5, "{images} images, {ports} ports: is this looking at the right place?");
    for mounted in text.lines().filter_map(|line| line.split_once("./deploy/compose/")) {
        let file = mounted.1.split(':').next().unwrap_or_default();
        ensure!(
            root().join("deploy/compose").join(file).is_file(),
            "deploy/compose/{file} is mounted but not there"
        );
    }
    Ok(())
}
