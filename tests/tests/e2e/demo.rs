//! `make demo` as a user runs it: its verdict, its exit code, and what it leaves behind.

use std::{
    ffi::OsStr,
    fs,
    io::{Read as _, Write as _},
    path::PathBuf,
    process::ExitStatus,
};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    harness::{
        binaries,
        process::{PATIENCE, Process, Program, eventually},
        scratch::{Scratch, copy_tree},
    },
    recording::Recording,
};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A place where the demo runs, so that everything it starts and writes can be told from what others do.
struct Stage {
    scratch: Scratch,
    /// The demo's folder for temporary files, which everything that it starts has in its environment.
    temporary: PathBuf,
}

impl Stage {
    fn new(name: &str) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let temporary = scratch.path().join("tmp");
        fs::create_dir(&temporary)?;
        Ok(Self { scratch, temporary })
    }

    /// Starts the demo as `make demo` does, at a speed of our own.
    fn start(&self, speed: &str, args: &[&str]) -> Result<Process> {
        // Who runs the tests may want to keep their folders; what the demo keeps is ours to look at.
        let program = Program::new("sluice-demo", "env", &self.scratch)
            .args(["-u", "SLUICE_KEEP_TMP"])
            .arg(binaries::path("sluice-demo")?);
        program.args(["--speed", speed]).args(args).env("TMPDIR", &self.temporary.to_string_lossy()).start()
    }

    /// Runs it to its end; how it ended and what it wrote.
    async fn run(&self, args: &[&str]) -> Result<(ExitStatus, String)> {
        let mut demo = self.start("100", args)?;
        let status = demo.wait(PATIENCE).await?;
        Ok((status, demo.log_text()))
    }

    /// Processes that the demo started.
    fn processes(&self) -> Result<Vec<(Pid, String)>> {
        let mark = format!("TMPDIR={}", self.temporary.display());
        let mut processes = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let folder = entry?.path();
            // Other people's processes are not ours to read, and one that ends meanwhile is none.
            let Ok(environment) = fs::read(folder.join("environ")) else { continue };
            if environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()) {
                let command = fs::read(folder.join("cmdline")).unwrap_or_default();
                let pid = folder.file_name().and_then(OsStr::to_str).context("a process without a number")?;
                processes.push((
                    Pid::from_raw(pid.parse()?),
                    String::from_utf8_lossy(&command).replace('\0', " "),
                ));
            }
        }
        Ok(processes)
    }

    fn is_clean(&self) -> Result<()> {
        let processes = self.processes()?;
        let files: Vec<PathBuf> =
            fs::read_dir(&self.temporary)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        ensure!(processes.is_empty() && files.is_empty(), "left behind: {processes:#?} {files:?}");
        Ok(())
    }
}

impl Drop for Stage {
    /// A test that fails leaves nothing behind either, whatever the demo did.
    fn drop(&mut self) {
        for (pid, _) in self.processes().unwrap_or_default() {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

/// A copy of a recording in which one cell of the last state is another.
fn altered(scratch: &Scratch) -> Result<PathBuf> {
    let folder = scratch.path().join("altered");
    copy_tree(Recording::open("shop")?.folder(), &folder)?;
    let file = folder.join("state-end.json.gz");
    let mut text = String::new();
    GzDecoder::new(fs::File::open(&file)?).read_to_string(&mut text)?;
    let mut state: serde_json::Value = serde_json::from_str(&text)?;
    let cell = state.pointer_mut("/tables/shop.customers/rows/0/1").context("no first customer")?;
    ensure!(cell.is_string(), "the second column of the customers is no text: {cell}");
    *cell = "Nobody".into();
    let mut packed = GzEncoder::new(fs::File::create(&file)?, Compression::fast());
    packed.write_all(state.to_string().as_bytes())?;
    packed.finish()?;
    Ok(folder)
}

/// Equal: 0. Then a second run, of a folder given by its path, whose recorded state is another: not 0, and it says where.
/// Nothing is left behind by either.
#[tokio::test]
async fn its_exit_code_is_the_verdict() -> Result<()> {
    let stage = Stage::new("demo-verdict")?;
    let (status, said) = stage.run(&["shop"]).await?;
    ensure!(status.code() == Some(0) && said.contains("\nEQUAL: "), "{status}:\n{said}");
    stage.is_clean()?;
    let folder = altered(&stage.scratch)?;
    let (status, said) = stage.run(&[&folder.to_string_lossy()]).await?;
    ensure!(status.code() == Some(1) && said.contains("\nDIFFERENT: "), "{status}:\n{said}");
    let differences = said.lines().filter(|line| line.contains("shop.customers") && line.contains("Nobody"));
    ensure!(differences.count() > 0, "nothing names the difference:\n{said}");
    stage.is_clean()
}

/// `KEEP=1`: everything runs on and can be asked, until the script that it names.
#[tokio::test]
async fn what_it_keeps_runs_until_it_is_stopped() -> Result<()> {
    let stage = Stage::new("demo-keep")?;
    let (status, said) = stage.run(&["--keep", "shop"]).await?;
    ensure!(status.success(), "{status}:\n{said}");
    let processes = stage.processes()?;
    for binary in [
        "tidb-sim",
        "pump",
        "drainer-kafka",
        "apply-mysql",
        "export-files",
        "etcd",
        "mariadbd",
        "kafka.Kafka",
    ] {
        ensure!(
            processes.iter().any(|(_, command)| command.contains(binary)),
            "no {binary} in {processes:#?}"
        );
    }
    let (_, hints) = said.split_once("Everything is still running").context("it does not say so")?;
    let hint = |what: &str| {
        let line = hints.lines().find_map(|line| line.trim().strip_prefix(what));
        line.map(|command| command.trim().to_owned())
            .with_context(|| format!("no hint for {what:?}:\n{said}"))
    };
    let shell = async |command: String| -> Result<String> {
        let output = tokio::process::Command::new("sh").args(["-c", &command]).output().await?;
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{command}: {text}");
        Ok(text)
    };
    let pumps = shell(hint("pumps")?).await?;
    ensure!(pumps.contains("online"), "{pumps}");
    let rows = shell(format!("{} -e 'SELECT COUNT(*) FROM shop.orders'", hint("MariaDB")?)).await?;
    ensure!(rows.contains("COUNT"), "{rows}");
    shell(hint("stop and remove")?).await?;
    eventually("everything to be gone", async || Ok(stage.is_clean().ok())).await
}

/// A signal in the middle leaves nothing behind, not even of what was to be kept.
async fn a_signal_ends_everything(signal: Signal, name: &str) -> Result<()> {
    let stage = Stage::new(name)?;
    let mut demo = stage.start("0.5", &["--keep", "shop"])?;
    demo.ready("all of it", async || demo_runs(&stage)).await?;
    demo.signal(signal)?;
    let status = demo.wait(PATIENCE).await?;
    ensure!(status.code() == Some(2), "{status}: {}", demo.log_tail());
    stage.is_clean()
}

fn demo_runs(stage: &Stage) -> Option<()> {
    let processes = stage.processes().ok()?;
    processes.iter().any(|(_, command)| command.contains("export-files")).then_some(())
}

#[tokio::test]
async fn a_termination_ends_everything() -> Result<()> {
    a_signal_ends_everything(Signal::SIGTERM, "demo-term").await
}

#[tokio::test]
async fn a_closed_terminal_ends_everything() -> Result<()> {
    a_signal_ends_everything(Signal::SIGHUP, "demo-hup").await
}

/// What `make demo CORPUS=… KEEP=1` runs.
#[tokio::test]
async fn make_hands_its_variables_on() -> Result<()> {
    let root = Recording::open("shop")?.folder().join("../../..");
    for (variables, expected) in [
        (&["CORPUS=/some where"][..], "sluice-demo\"  \"/some where\""),
        (&["KEEP=1"], "sluice-demo\" --keep \"shop\""),
    ] {
        let mut make = tokio::process::Command::new("make");
        let output = make
            .args(["-n", "demo"])
            .args(variables)
            .current_dir(&root)
            .output()
            .await
            .context("run make")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(said.contains(expected), "{variables:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
