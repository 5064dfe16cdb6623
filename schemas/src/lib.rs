//! The contracts: every message that crosses a process border, and the hashes that are part of them.
//!
//! Generated from `proto/`; this crate does no I/O and knows no clock. What a message means is said in its `.proto`.

pub mod digest;
pub mod partition;

/// TiDB Binlog's own messages: what TiDB, its pump client and the original drainer speak.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
pub mod binlog {
    tonic::include_proto!("binlog");
}

/// PD's messages (the few that are used).
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
pub mod pdpb {
    tonic::include_proto!("pdpb");
}

/// Regions and stores, as PD describes them.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
pub mod metapb {
    tonic::include_proto!("metapb");
}

/// TiKV's region errors.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
pub mod errorpb {
    tonic::include_proto!("errorpb");
}

/// TiKV's transaction messages (the few that are used).
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
pub mod kvrpcpb {
    tonic::include_proto!("kvrpcpb");
}

/// TiKV's service.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
pub mod tikvpb {
    tonic::include_proto!("tikvpb");
}

/// The Kafka contract, version 1, and the pumps' own pull.
pub mod sluice {
    /// The Kafka contract, version 1: row header, commit stream, native values, schema topic.
    #[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("sluice.v1");
    }

    /// The pumps' own pull protocol.
    pub mod pump {
        /// Version 1 of the pull protocol.
        #[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
        pub mod v1 {
            tonic::include_proto!("sluice.pump.v1");
        }
    }
}

/// Version of the Kafka contract that this build writes; `Start.contract_version`.
pub const CONTRACT_VERSION: u32 = 1;

/// Name of the record header that carries [`sluice::v1::RowMeta`].
pub const META_HEADER: &str = "sluice";

/// Name of the plain-text record header with the decimal commit_ts.
pub const COMMIT_TS_HEADER: &str = "commit_ts";

/// Largest commit record in bytes; a batch closes before it would grow past this.
pub const MAX_COMMIT_RECORD: usize = 512 * 1024;
