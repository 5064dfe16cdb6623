//! A pump as a process of its own, for what only processes can be: stopped, killed, measured.

use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};

use node::tls::Security;

use super::{PATIENCE, Site, Tidb, free_port, soon, until};

pub struct Process {
    child: Child,
    pub addr: SocketAddr,
    pub admin: SocketAddr,
    pub node_id: String,
}

impl Process {
    /// Starts one, and waits until it is online.
    pub async fn start(site: &Site, node_id: &str) -> Self {
        let (port, admin) = (free_port(), free_port());
        Self::at(site, node_id, port, admin).await
    }

    /// Starts another one on the same data and ports.
    pub async fn again(mut self, site: &Site) -> Self {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        Self::at(site, &self.node_id.clone(), self.addr.port(), self.admin.port()).await
    }

    async fn at(site: &Site, node_id: &str, port: u16, admin: u16) -> Self {
        let mut process = Self::launch(site, node_id, port, admin);
        let mut client = Tidb::new(process.addr);
        until("the pump is online", || {
            let ended = process.child.try_wait().unwrap();
            assert!(ended.is_none(), "the pump ended: {ended:?}");
            let probe = client.probe();
            async { probe.await.is_ok() }
        })
        .await;
        process
    }

    /// Starts one without waiting. It has the configuration in `<node id>.toml` of the site's directory, if there is one.
    pub fn launch(site: &Site, node_id: &str, port: u16, admin: u16) -> Self {
        Self::launch_at(site, &site.pd_url, node_id, port, admin)
    }

    /// The same at another PD, which may not be there.
    pub fn launch_at(site: &Site, pd_url: &str, node_id: &str, port: u16, admin: u16) -> Self {
        let [addr, admin] = [port, admin].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let file = site.dir.path().join(format!("{node_id}.toml"));
        let config = file.try_exists().unwrap().then(|| ["-config".into(), file.into_os_string()]);
        let child = Command::new(env!("CARGO_BIN_EXE_pump"))
            .args(["-addr", &addr.to_string(), "-admin-addr", &admin.to_string()])
            .args(["-pd-urls", pd_url, "-node-id", node_id, "-L", "warn", "-heartbeat-interval", "1"])
            .arg("-data-dir")
            .arg(site.dir.path().join(node_id))
            .args(config.into_iter().flatten())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, addr, admin, node_id: node_id.to_owned() }
    }

    pub fn tidb(&self) -> Tidb {
        Tidb::new(self.addr)
    }

    pub async fn status(&self) -> serde_json::Value {
        super::status(self.admin).await
    }

    /// A metric without labels, once it is there.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let http = Security::default().http_client(PATIENCE).unwrap();
        let page = http.get(format!("http://{}/metrics", self.admin)).send().await.unwrap();
        let page = page.text().await.unwrap();
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        Some(value.parse().unwrap())
    }

    /// Sends a signal by name: STOP, CONT, TERM.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// Until it has ended by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        soon("the pump ends", async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    break status;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        })
        .await
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Bytes of memory of its own (not of files) that it has now.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
