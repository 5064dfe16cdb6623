//! A site to measure on: a real etcd, stand-ins for PD and TiKV in this process, a pump in its own.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use node::pd::Pd;
use node::tls::Security;
use simulator::cluster::Cluster;
use simulator::pd::MockPd;
use simulator::tikv::MockTikv;
use tempfile::TempDir;

use crate::link::{Link, frame};
use crate::process::Process;

/// How long anything may take to start.
const PATIENCE: Duration = Duration::from_secs(60);
const CLUSTER: u64 = 7_000_100;

/// A child process, ended when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// etcd, PD and TiKV.
pub struct Site {
    /// A client of PD.
    pub pd: Pd,
    /// What PD and TiKV answer from.
    pub cluster: Cluster,
    url: String,
    _pd: MockPd,
    _tikv: MockTikv,
    _etcd: Running,
    _dir: TempDir,
}

/// A pump process.
pub struct Pump {
    /// Where it listens.
    pub addr: String,
    /// Its data directory.
    pub dir: PathBuf,
    child: Running,
}

/// A child that ends with this program, however that ends: a signal runs no destructors. (`setpriv` becomes the program, so
/// the process id is its own.)
fn tied(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Site {
    /// Starts it, its files below `dir`.
    ///
    /// # Errors
    /// etcd is not installed, or something does not come up.
    pub async fn start(dir: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir_in(dir).with_context(|| dir.display().to_string())?;
        let (client, peer) = (free_port()?, free_port()?);
        let (etcd_url, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let etcd = tied(Path::new("etcd"))
            .args(["--name", "bench", "--unsafe-no-fsync", "--log-level", "error"])
            .arg("--data-dir")
            .arg(dir.path().join("etcd"))
            .args(["--listen-client-urls", &etcd_url, "--advertise-client-urls", &etcd_url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("bench={peer}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start etcd (Debian packages etcd-server, util-linux)")?;
        let etcd = Running(etcd);
        let cluster = Cluster::live(CLUSTER);
        let tikv = MockTikv::start(cluster.clone(), "127.0.0.1:0").await?;
        let pd = MockPd::start(cluster.clone(), "127.0.0.1:0", Some(&etcd_url)).await?;
        let url = pd.url();
        let client = Pd::connect(std::slice::from_ref(&url), &Security::default()).await?;
        let began = Instant::now();
        while let Err(error) = client.etcd().kv_client().get("bench", None).await {
            if began.elapsed() > PATIENCE {
                return Err(error).context("etcd does not answer");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(Self { pd: client, cluster, url, _pd: pd, _tikv: tikv, _etcd: etcd, _dir: dir })
    }

    /// Starts the pump `binary` with its data in `dir` and waits until it takes binlogs. It must understand the original's
    /// flags; `extra` are more.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn pump(&self, binary: &Path, dir: &Path, extra: &[String]) -> anyhow::Result<Pump> {
        let addr = format!("127.0.0.1:{}", free_port()?);
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let log = dir.join("pump.log");
        let out = std::fs::File::create(&log).with_context(|| log.display().to_string())?;
        let child = tied(binary)
            .args(["-addr", &addr, "-pd-urls", &self.url, "-L", "warn", "-data-dir"])
            .arg(dir.join("data"))
            .args(extra)
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("start {}", binary.display()))?;
        let mut pump = Pump { addr, dir: dir.join("data"), child: Running(child) };
        let began = Instant::now();
        loop {
            let refused = match Link::connect(&pump.addr).await {
                // TiDB's own probe.
                Ok((link, _connection)) => {
                    match link.write(frame(self.pd.cluster_id(), Bytes::new())).await {
                        Ok(()) => return Ok(pump),
                        Err(refused) => refused.to_string(),
                    }
                }
                Err(error) => format!("{error:#}"),
            };
            if let Some(status) = pump.child.0.try_wait()? {
                bail!("{} ended with {status}; see {}", binary.display(), log.display());
            }
            if began.elapsed() > PATIENCE {
                bail!("the pump takes no binlogs: {refused}; see {}", log.display());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Pump {
    /// To watch it.
    pub fn process(&self) -> Process {
        Process(self.child.0.id())
    }

    /// Ends it in order.
    ///
    /// # Errors
    /// It does not end, or with a failure.
    pub fn stop(mut self) -> anyhow::Result<()> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.0.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        let status = self.child.0.wait()?;
        anyhow::ensure!(status.success(), "the pump ended with {status}");
        Ok(())
    }
}
