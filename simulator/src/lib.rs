//! Stands in for TiDB, and for PD, TiKV and TiDB's status port, without lying to the pumps.
//!
//! The pure cores decide what is true: [`tso`] (which timestamps PD may give out), [`schedule`] (which record may
//! leave), [`transactions`] (what TiKV knows) and [`topology`] (where it lives). [`cluster`] holds them together under
//! one lock; [`pd`] and [`tikv`] serve it.

pub mod cluster;
mod etcd_proxy;
pub mod pd;
pub mod schedule;
mod server;
pub mod tikv;
pub mod topology;
pub mod transactions;
pub mod tso;
