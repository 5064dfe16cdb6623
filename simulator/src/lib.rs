//! Stands in for TiDB, and for PD, TiKV and TiDB's status port, without lying to the pumps.
//!
//! A pump draws conclusions from timestamps: what PD gave out, what TiDB sent, what TiKV answered. A recording fixes all
//! of TiDB's timestamps, so everything else has to be fitted around them. The pure cores say what is true at any moment:
//!
//! | module | decides |
//! |---|---|
//! | [`schedule`] | which record may leave |
//! | [`tso`] | which timestamps PD may give out |
//! | [`transactions`] | what TiKV knows of a transaction |
//! | [`topology`] | where TiKV is asked about it |
//! | [`fate`] | how a recorded transaction looks while it is under way |
//! | [`jobs`], [`catalog`] | which DDL jobs and which schema TiDB shows |
//! | [`pumps`] | which pump TiDB writes to |
//!
//! [`cluster`] holds clock, order and transactions together under one lock. [`pd`] (with etcd behind the same port),
//! [`tikv`] and [`status_port`] serve it; [`stage`] starts them together. [`client`] sends as TiDB's pump client does,
//! [`player`] plays a [`script`] (read by [`recording`], or built in code), [`load`] makes transactions of its own.
//! [`command`] is the command line.
//!
//! Nothing is stored: a crash of `tidb-sim` is the end of that cluster, as when a test ends.

pub mod catalog;
pub mod client;
pub mod cluster;
pub mod command;
mod etcd_proxy;
pub mod fate;
pub mod jobs;
pub mod load;
pub mod pd;
pub mod player;
pub mod pumps;
pub mod recording;
pub mod schedule;
pub mod script;
mod server;
pub mod stage;
pub mod status_port;
pub mod tikv;
pub mod topology;
pub mod transactions;
pub mod tso;
