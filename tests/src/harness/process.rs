//! One child process with its log in a file.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::Pid,
};
use tokio::process::{Child, Command};

use super::scratch::{Leash, Scratch};

/// How long anything may take to become ready or to stop. Long, because it is no measurement: a machine with all its cores
/// busy must not fail a test.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// How often a condition is looked at that offers nothing to wait on.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// What to start.
#[derive(Clone, Debug)]
pub struct Program {
    name: String,
    path: PathBuf,
    args: Vec<OsString>,
    envs: Vec<(String, String)>,
    log: PathBuf,
    leash: Option<Leash>,
}

impl Program {
    /// `name` is for messages; stdout and stderr are appended to `<name>.log` in the folder.
    pub fn new(name: &str, path: impl Into<PathBuf>, scratch: &Scratch) -> Self {
        let log = scratch.path().join(format!("{name}.log"));
        Self {
            name: name.to_owned(),
            path: path.into(),
            args: Vec::new(),
            envs: Vec::new(),
            log,
            leash: scratch.leash().cloned(),
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.envs.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The file that stdout and stderr go to.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Starts it. Call this from a thread that lives as long as the child should: the kernel ties the death signal to it.
    pub fn start(&self) -> Result<Process> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("open {}", self.log.display()))?;
        // `setpriv` ties its life to ours, `setsid` cuts it loose; both become the program, so the process id is its own.
        let mut command = if self.leash.is_some() {
            Command::new("setsid")
        } else {
            let mut command = Command::new("setpriv");
            // A group of its own: Ctrl-C is for us, and we stop it in our order.
            command.args(["--pdeathsig", "KILL", "--"]).process_group(0);
            command
        };
        let log_from = log.metadata().with_context(|| format!("look at {}", self.log.display()))?.len();
        let child = command
            .arg(&self.path)
            .args(&self.args)
            .envs(self.envs.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {} ({})", self.name, self.path.display()))?;
        Ok(Process { program: self.clone(), child, log_from })
    }
}

/// A running child; dropped, it is killed and reaped, unless its [`Scratch`] was let go.
#[derive(Debug)]
pub struct Process {
    program: Program,
    child: Child,
    /// Length of the log when it was started: what lies before was written by its predecessors.
    log_from: u64,
}

impl Process {
    /// The name given to it.
    pub fn name(&self) -> &str {
        &self.program.name
    }

    /// What it was started from; starting that again makes a second one with the same log.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("look at {}", self.program.name))
    }

    /// Everything it has written itself; nothing of whoever ran under its name before.
    pub fn log_text(&self) -> String {
        let own = || -> std::io::Result<Vec<u8>> {
            let mut log = File::open(&self.program.log)?;
            log.seek(SeekFrom::Start(self.log_from))?;
            let mut bytes = Vec::new();
            log.read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        own()
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_else(|error| format!("({}: {error})", self.program.log.display()))
    }

    /// The last lines it wrote, indented, for error messages.
    pub fn log_tail(&self) -> String {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].iter().map(|line| format!("  | {line}\n")).collect()
    }

    /// Waits until it ends by itself.
    pub async fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        match tokio::time::timeout(patience, self.child.wait()).await {
            Ok(status) => status.with_context(|| format!("wait for {}", self.program.name)),
            Err(_) => bail!(
                "{} still runs after {patience:?}; its log ends:\n{}",
                self.program.name,
                self.log_tail()
            ),
        }
    }

    /// Kills it as a power cut would and reaps it.
    pub async fn kill(&mut self) -> Result<()> {
        if self.ended()?.is_none() {
            self.child.kill().await.with_context(|| format!("kill {}", self.program.name))?;
        }
        Ok(())
    }

    /// Asks it to stop and waits for that.
    pub async fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(PATIENCE).await
    }

    /// Sends a signal, if it still runs.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.ended()?.is_none()
            && let Some(pid) = self.pid()
        {
            kill(Pid::from_raw(pid.try_into()?), signal)
                .with_context(|| format!("{signal} to {}", self.program.name))?;
        }
        Ok(())
    }

    /// Waits until `ready` answers, as long as the process lives.
    pub async fn ready<T>(&mut self, what: &str, mut ready: impl AsyncFnMut() -> Option<T>) -> Result<T> {
        let started = Instant::now();
        loop {
            if let Some(answer) = ready().await {
                return Ok(answer);
            }
            if let Some(status) = self.ended()? {
                bail!(
                    "{} ended ({status}) before {what}; its log ends:\n{}",
                    self.program.name,
                    self.log_tail()
                );
            }
            if started.elapsed() > PATIENCE {
                bail!(
                    "{}: no {what} after {PATIENCE:?}; its log ends:\n{}",
                    self.program.name,
                    self.log_tail()
                );
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.program.leash.as_ref().is_some_and(Leash::is_off) {
            return;
        }
        // Its folder is about to go: wait until the kernel is done with it. An error means that it was reaped already.
        if self.child.start_kill().is_ok()
            && let Some(pid) = self.child.id().and_then(|id| i32::try_from(id).ok())
        {
            let _ = waitpid(Pid::from_raw(pid), None);
        }
    }
}

/// Waits until `condition` answers something; `what` names it in the error.
pub async fn eventually<T>(what: &str, mut condition: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(answer) = condition().await? {
            return Ok(answer);
        }
        if started.elapsed() > PATIENCE {
            bail!("waited {PATIENCE:?} in vain for {what}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a predecessor wrote into the same log proves nothing about its successor.
    #[tokio::test]
    async fn a_log_begins_at_the_start() -> Result<()> {
        let scratch = Scratch::new("log")?;
        let program = Program::new("says", "sh", &scratch).args(["-c", "echo \"I am $0\""]);
        let mut first = program.clone().arg("the first").start()?;
        first.wait(PATIENCE).await?;
        let mut second = program.arg("the second").start()?;
        second.wait(PATIENCE).await?;
        assert_eq!(second.log_text(), "I am the second\n");
        assert_eq!(first.log_text(), "I am the first\nI am the second\n");
        Ok(())
    }
}
