//! Generates the message types from `proto/`; protox stands in for protoc, so nothing need be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = [
        "tidb/binlog.proto",
        "tidb/pump.proto",
        "pd/pdpb.proto",
        "pd/tikvpb.proto",
        "sluice/v1/log.proto",
        "sluice/v1/row.proto",
        "sluice/v1/schema.proto",
        "sluice/v1/pump.proto",
    ];
    let descriptors = protox::compile(files, ["proto"])?;
    // Payloads are shared, not copied, between the wire, the queue and the store.
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
