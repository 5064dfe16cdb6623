//! A real etcd.

use anyhow::Result;
use etcd_client::{Client, ConnectOptions};

use super::{
    ports,
    process::{Process, Program},
    scratch::Scratch,
};

/// A single etcd member. Also what the simulated PD forwards to.
#[derive(Debug)]
pub struct Etcd {
    address: String,
    process: Process,
}

impl Etcd {
    /// Starts one in `scratch` and waits until it answers.
    pub async fn start(scratch: &Scratch) -> Result<Self> {
        let address = ports::free_address()?;
        let (client, peer) = (format!("http://{address}"), format!("http://{}", ports::free_address()?));
        let program = Program::new("etcd", "etcd", scratch)
            .arg("--data-dir")
            .arg(scratch.path().join("etcd"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--logger", "zap"]);
        let mut etcd = Self { address, process: program.start()? };
        etcd.await_answer().await?;
        Ok(etcd)
    }

    /// `host:port` of its client port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// A client of it.
    pub async fn client(&self) -> Result<Client> {
        Ok(Client::connect([format!("http://{}", self.address)], Some(ConnectOptions::new())).await?)
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Kills it; its data stays.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.kill().await
    }

    /// Starts it again on the same port with the same data.
    pub async fn restart(&mut self) -> Result<()> {
        self.process.kill().await?;
        self.process = self.process.program().start()?;
        self.await_answer().await
    }

    async fn await_answer(&mut self) -> Result<()> {
        let url = format!("http://{}", self.address);
        self.process
            .ready("answer", async || {
                let mut client = Client::connect([&url], None).await.ok()?;
                client.status().await.ok().map(drop)
            })
            .await
    }
}
