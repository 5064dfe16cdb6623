//! Writes the seeds of every target into `corpus/<target>/`, beside what the fuzzer has found.

use std::{fs, path::Path};

fn main() -> std::io::Result<()> {
    for (target, inputs) in sluice_fuzz::seeds::seeds() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
        fs::create_dir_all(&folder)?;
        for (i, input) in inputs.iter().enumerate() {
            fs::write(folder.join(format!("seed-{i:04}")), input)?;
        }
        println!("{target}: {} seeds", inputs.len());
    }
    Ok(())
}
