//! What every Sluice process is made of: configuration, logs and metrics, the admin listener, TLS, shutdown, the client of
//! PD, the registry in etcd; and `binlogctl`, the operator's face of that registry.
//!
//! It knows nothing of rows or Kafka topics. Nothing here starts by itself: a service passes values in and spawns the
//! futures it gets back in its own [`shutdown::Tasks`].

pub mod admin;
pub mod args;
pub mod config;
pub mod ctl;
pub mod data_dir;
pub mod dial;
pub mod etcd;
pub mod kafka;
pub mod pd;
pub mod registry;
pub mod savepoint;
pub mod serve;
pub mod shutdown;
pub mod telemetry;
pub mod tidb_status;
pub mod tls;
