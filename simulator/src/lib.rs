//! Stands in for TiDB, and for PD, TiKV and TiDB's status port, without lying to the pumps.
//!
//! The pure cores decide what is true: [`tso`] (which timestamps PD may give out), [`schedule`] (which record may
//! leave), [`transactions`] (what TiKV knows) and [`topology`] (where it lives). [`cluster`] holds them together under
//! one lock; [`pd`] and [`tikv`] serve it.

pub mod catalog;
pub mod client;
pub mod cluster;
pub mod command;
mod etcd_proxy;
pub mod fate;
pub mod jobs;
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
