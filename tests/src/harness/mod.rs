//! Real processes on loopback ports of their own: etcd, Kafka, MariaDB and our binaries.
//!
//! Every service lives in a temporary folder, is ready when it answers (never after a fixed time), and is killed and
//! removed when its handle is dropped; `setpriv --pdeathsig` kills it too when this process dies without dropping.
//! Nothing here is shared between tests except, where `with-kafka` runs them, one Kafka broker: topics carry the
//! test's own name.

pub mod admin;
pub mod authority;
pub mod binaries;
pub mod etcd;
pub mod kafka;
pub mod mariadb;
pub mod pd;
pub mod ports;
pub mod process;
pub mod scratch;
pub mod site;
