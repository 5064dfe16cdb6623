//! Rules of the house that only a program keeps: which crate may use which, how long a file may be, what the pages name.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

pub(crate) fn root() -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("..")
}

/// schemas ◀ tidb ◀ node ◀ everything that runs; services never use each other; tests and benchmarks may use all.
#[test]
fn crates_depend_forward_only() -> Result<()> {
    let layers: BTreeMap<&str, &[&str]> = [
        ("schemas", &[][..]),
        ("tidb", &["schemas"]),
        ("node", &["schemas", "tidb"]),
        ("pump", &["schemas", "tidb", "node"]),
        ("drainer-kafka", &["schemas", "tidb", "node"]),
        ("consumers", &["schemas", "tidb", "node"]),
        ("simulator", &["schemas", "tidb", "node"]),
    ]
    .into();
    let free = ["e2e", "bench"];
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root())
        .output()?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("packages")?;
    let ours: BTreeSet<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let mut seen = 0;
    for package in packages {
        let name = package["name"].as_str().context("name")?;
        if free.contains(&name) {
            continue;
        }
        let allowed =
            layers.get(name).with_context(|| format!("crate {name} has no place in the layering yet"))?;
        for dependency in package["dependencies"].as_array().context("dependencies")? {
            let used = dependency["name"].as_str().context("name of a dependency")?;
            // The simulator stands in for TiDB in other crates' tests.
            let in_tests = dependency["kind"] == "dev" && used == "simulator";
            ensure!(
                !ours.contains(used) || allowed.contains(&used) || in_tests,
                "{name} uses {used}; it may use {allowed:?}"
            );
            seen += usize::from(ours.contains(used));
        }
    }
    ensure!(seen >= layers.len(), "only {seen} uses among our crates: is this looking at the right place?");
    Ok(())
}

/// A file has one job; one that grows past this has two.
const LONGEST_FILE: usize = 600;

#[test]
fn source_files_stay_short() -> Result<()> {
    let output = Command::new("git")
        .args(["ls-files", "-co", "--exclude-standard", "*.rs"])
        .current_dir(root())
        .output()?;
    ensure!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let files = String::from_utf8(output.stdout)?;
    ensure!(files.lines().count() > 50, "only {} source files found", files.lines().count());
    let mut long = String::new();
    for file in files.lines() {
        // A file deleted and not yet committed is listed still.
        let Ok(text) = std::fs::read_to_string(root().join(file)) else { continue };
        let lines = text.lines().count();
        if lines > LONGEST_FILE {
            long += &format!("{file}: {lines} lines\n");
        }
    }
    ensure!(long.is_empty(), "longer than {LONGEST_FILE} lines, split along a seam with a name:\n{long}");
    Ok(())
}

/// Loads and validates every example as its service would.
#[test]
fn every_example_configuration_loads() -> Result<()> {
    fn load<T: node::config::Validate + serde::de::DeserializeOwned>(path: &Path) -> Result<()> {
        Ok(node::config::load::<T>(path)?.validate()?)
    }
    let mut loaded = 0;
    for folder in ["deploy/config", "deploy/compose"] {
        for entry in std::fs::read_dir(root().join(folder))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let outcome = match name.as_str() {
                "pump.toml" => load::<pump::config::Config>(&path),
                "drainer-kafka.toml" => load::<drainer_kafka::config::Config>(&path),
                "export-files.toml" => load::<consumers::files::Config>(&path),
                apply if apply.starts_with("apply-mysql") => load::<consumers::mysql::Config>(&path),
                // TiDB's and MariaDB's own.
                "tidb.toml" | "mariadb-grants.sql" => continue,
                _ => anyhow::bail!("{} is of nobody known", path.display()),
            };
            outcome.with_context(|| path.display().to_string())?;
            loaded += 1;
        }
    }
    ensure!(loaded == 9, "{loaded} examples");
    Ok(())
}

/// A page that says what is tested where must not outlive the test.
#[test]
fn tests_named_in_the_documentation_exist() -> Result<()> {
    let output = Command::new("git")
        .args(["ls-files", "-co", "--exclude-standard", "*.md"])
        .current_dir(root())
        .output()?;
    ensure!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let mut named = BTreeSet::new();
    for page in String::from_utf8(output.stdout)?.lines() {
        // A page deleted and not yet committed is listed still.
        let Ok(text) = std::fs::read_to_string(root().join(page)) else { continue };
        for quoted in text.split('`').skip(1).step_by(2) {
            if let Some((file, test)) = quoted.split_once(".rs::") {
                named.insert((page.to_owned(), format!("{file}.rs"), test.to_owned()));
            }
        }
    }
    ensure!(named.len() > 15, "only {} tests named: is this looking at the right pages?", named.len());
    for (page, file, test) in named {
        let text = std::fs::read_to_string(root().join(&file))
            .with_context(|| format!("{page} names {file}::{test}"))?;
        let place = text.find(&format!("fn {test}("));
        let place = place.with_context(|| format!("{page} names {file}::{test}, which is not there"))?;
        let above: Vec<&str> = text[..place].lines().rev().take(4).collect();
        let is_test = above.iter().any(|line| line.contains("#[test]") || line.contains("#[tokio::test"));
        ensure!(is_test || text[..place].contains("proptest!"), "{file}::{test} is no test");
    }
    Ok(())
}
