//! A recorded workload: the folders of `tests/fixtures/`, described in the README there.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use flate2::read::GzDecoder;
use serde::Deserialize;

/// A recording's folder and what its `corpus.json` says.
#[derive(Clone, Debug)]
pub struct Recording {
    folder: PathBuf,
    corpus: Corpus,
    pumps: usize,
}

#[derive(Clone, Debug, Deserialize)]
struct Corpus {
    note: String,
    checkpoints: Vec<Checkpoint>,
}

/// A moment at which the state was recorded.
#[derive(Clone, Debug, Deserialize)]
pub struct Checkpoint {
    /// Its name, as in `state-<label>.json.gz`.
    pub label: String,
    /// The state includes every transaction committed at or below it.
    pub commit_ts: u64,
}

/// All tables at one commit_ts.
#[derive(Clone, Debug, Deserialize)]
pub struct State {
    /// The state includes every transaction committed at or below it.
    pub commit_ts: u64,
    /// By `schema.table`.
    pub tables: BTreeMap<String, Table>,
}

/// One table, view or sequence of a state.
#[derive(Clone, Debug, Deserialize)]
pub struct Table {
    /// `BASE TABLE`, `VIEW` or `SEQUENCE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// SHOW CREATE TABLE.
    pub create: String,
    /// Column names in order; empty for views and sequences, whose rows are not recorded.
    #[serde(default)]
    pub columns: Vec<String>,
    /// One list of cells per row.
    #[serde(default)]
    pub rows: Vec<Vec<Cell>>,
}

/// A value as MySQL's text protocol shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cell {
    /// NULL.
    Null,
    /// The bytes, mostly text.
    Bytes(Vec<u8>),
}

impl<'de> Deserialize<'de> for Cell {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Text(String),
            Hex { hex: String },
        }
        match Option::<Form>::deserialize(deserializer)? {
            None => Ok(Self::Null),
            Some(Form::Text(text)) => Ok(Self::Bytes(text.into_bytes())),
            Some(Form::Hex { hex }) => {
                unhex(&hex).map(Self::Bytes).ok_or_else(|| serde::de::Error::custom("odd hex"))
            }
        }
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

impl Recording {
    /// By the name of a folder under `tests/fixtures/`, or a path to any folder of that form.
    pub fn open(name: &str) -> Result<Self> {
        // Asked for now: what lies in a shared target directory may have been built from another checkout.
        let package = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| "tests".into(), PathBuf::from);
        let fixture = package.join("fixtures").join(name);
        let folder = if !name.contains('/') && fixture.is_dir() { fixture } else { PathBuf::from(name) };
        let file = folder.join("corpus.json");
        let text = std::fs::read_to_string(&file).with_context(|| {
            format!(
                "{name:?} is neither a folder under tests/fixtures nor one with a recording: no {}",
                file.display()
            )
        })?;
        let corpus: Corpus =
            serde_json::from_str(&text).with_context(|| format!("read {}", file.display()))?;
        if corpus.checkpoints.is_empty() {
            bail!("{} names no checkpoint", file.display());
        }
        let pumps = (1..).take_while(|n| folder.join(format!("pump-{n}.rec.gz")).is_file()).count();
        if pumps == 0 {
            bail!("{} has no pump-1.rec.gz", folder.display());
        }
        Ok(Self { folder: folder.canonicalize()?, corpus, pumps })
    }

    /// The folder, absolute.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the workload was.
    pub fn note(&self) -> &str {
        &self.corpus.note
    }

    /// How many pumps were recorded.
    pub fn pumps(&self) -> usize {
        self.pumps
    }

    /// From the first binlog to the last, as they arrived.
    pub fn duration(&self) -> Result<Duration> {
        let (mut first, mut last) = (u64::MAX, 0);
        for n in 1..=self.pumps {
            let path = self.folder.join(format!("pump-{n}.rec.gz"));
            let mut frames = Vec::new();
            GzDecoder::new(File::open(&path)?)
                .read_to_end(&mut frames)
                .with_context(|| format!("read {}", path.display()))?;
            let mut rest = frames.as_slice();
            while let Some((time, after)) = rest.split_first_chunk::<8>() {
                let time = u64::from_be_bytes(*time);
                (first, last) = (first.min(time), last.max(time));
                rest = after
                    .split_first_chunk::<4>()
                    .and_then(|(length, after)| after.get(u32::from_be_bytes(*length) as usize..))
                    .with_context(|| format!("{} ends inside a frame", path.display()))?;
            }
        }
        Ok(Duration::from_nanos(last.saturating_sub(first)))
    }

    /// The recorded moments in commit order; the last is the end.
    pub fn checkpoints(&self) -> &[Checkpoint] {
        &self.corpus.checkpoints
    }

    /// The last moment.
    pub fn end(&self) -> &Checkpoint {
        // `open` refuses a recording without one.
        &self.corpus.checkpoints[self.corpus.checkpoints.len() - 1]
    }

    /// The tables at a checkpoint.
    pub fn state(&self, checkpoint: &Checkpoint) -> Result<State> {
        let path = self.folder.join(format!("state-{}.json.gz", checkpoint.label));
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let state: State = serde_json::from_reader(std::io::BufReader::new(GzDecoder::new(file)))
            .with_context(|| format!("read {}", path.display()))?;
        if state.commit_ts != checkpoint.commit_ts {
            bail!("{} is of {}, corpus.json says {}", path.display(), state.commit_ts, checkpoint.commit_ts);
        }
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fixture_opens() {
        for name in ["shop", "concurrent", "orphans", "types", "keys", "ddl", "random", "large"] {
            let recording = Recording::open(name).unwrap();
            assert!(recording.pumps() >= 2, "{name}");
            for checkpoint in recording.checkpoints() {
                assert!(
                    !recording.state(checkpoint).unwrap().tables.is_empty(),
                    "{name} {}",
                    checkpoint.label
                );
            }
        }
    }

    #[test]
    fn shop_took_five_seconds() {
        assert_eq!(Recording::open("shop").unwrap().duration().unwrap().as_millis(), 5076);
    }

    #[test]
    fn a_wrong_name_is_told() {
        let error = Recording::open("shoop").unwrap_err().to_string();
        assert!(error.contains("shoop") && error.contains("tests/fixtures"), "{error}");
    }

    #[test]
    fn cells() {
        let cells: Vec<Cell> = serde_json::from_str(r#"[null, "a", {"hex": "00ff"}]"#).unwrap();
        assert_eq!(cells, [Cell::Null, Cell::Bytes(b"a".into()), Cell::Bytes(vec![0, 255])]);
        assert!(serde_json::from_str::<Cell>(r#"{"hex": "0"}"#).is_err());
    }
}
