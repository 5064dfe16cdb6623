//! The export's folder: files in the making, finished files, checkpoints.
//!
//! ```text
//! <dir>/manifest.jsonl                                          what counts
//! <dir>/data/<db>/<table>/<date>/<first seq>-<table id>-<part>.jsonl
//! <dir>/data/<db>/<table>/schema-<table id>-<version>.json      definitions, beside the rows they describe
//! <dir>/ddl/<date>/<first seq>.jsonl                            schema changes
//! <dir>/.tmp/                                                   files in the making
//! ```
//!
//! A file is written under `.tmp`, synced, renamed to its place; the folders are synced; then one line of the manifest
//! names all files finished since the last one and the position after them, and is synced. At start everything below
//! `data` and `ddl` that the manifest does not name is removed, and `.tmp` is emptied: what a crash left behind is read
//! again and written under the same names. Nothing outside these is touched.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidb::ts::CommitTs;

use super::config::{By, Format, JsonColumns, OutputConfig};
use super::manifest::{Checkpoint, FileEntry, FileKind, Manifest, ManifestError, sync_dir};
use super::name::component;
use super::{csv, json};
use crate::event::{Change, Ddl, Rows};
use crate::metrics;
use crate::position::Position;
use crate::schema::Table;

const BUFFER: usize = 64 * 1024;

/// Writing the export failed. Nothing that the manifest names is affected.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A file or folder.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file that the manifest names is gone or has another size.
    #[error(
        "{path} is not as the manifest says ({what}): the export was changed from outside; restore the file"
    )]
    Changed {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A change cannot be written as JSON.
    #[error("transaction {seq}: {source}")]
    Render {
        /// The transaction.
        seq: u64,
        /// Why.
        source: serde_json::Error,
    },
}

/// The folder, with files in the making.
#[derive(Debug)]
pub struct Output {
    config: OutputConfig,
    manifest: Manifest,
    position: Option<Position>,
    open: BTreeMap<Key, OpenFile>,
    /// Number of files begun for a key and seq, so that no two have the same name.
    parts: BTreeMap<(Key, u64), u32>,
    finished: Vec<FileEntry>,
    /// Folders that got names since the last checkpoint.
    touched: BTreeSet<PathBuf>,
    /// Definitions that are written.
    schemas: HashSet<(i64, i64)>,
    buffer: Vec<u8>,
    clock: u64,
    next_temporary: u64,
}

/// What a file in the making is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Ddl { date: String },
    Rows { table_id: i64, version: i64, date: String },
}

#[derive(Debug)]
struct OpenFile {
    file: BufWriter<File>,
    temporary: PathBuf,
    entry: FileEntry,
    crc: u32,
    /// When it was written to last, counted in changes.
    used: u64,
}

impl Output {
    /// Opens the folder: reads the manifest, removes what it does not name.
    pub fn open(config: &OutputConfig) -> Result<Self, OutputError> {
        let dir = &config.dir;
        make_dir(dir)?;
        let mut named = HashSet::new();
        let mut schemas = HashSet::new();
        let mut position = None;
        let mut sizes = Vec::new();
        let manifest = Manifest::open(dir, |checkpoint| {
            for file in checkpoint.files {
                if file.kind == FileKind::Schema {
                    schemas.insert((file.table_id, file.schema_version));
                }
                let path = dir.join(&file.path);
                sizes.push((path.clone(), file.bytes));
                named.insert(path);
            }
            position = Some(checkpoint.position);
        })?;
        for (path, bytes) in sizes {
            let changed = |what: String| OutputError::Changed { path: path.clone(), what };
            match fs::symlink_metadata(&path) {
                Ok(metadata) if metadata.is_file() && metadata.len() == bytes => {}
                Ok(metadata) => return Err(changed(format!("{} bytes instead of {bytes}", metadata.len()))),
                // Moved away by whoever takes files out of the export: the manifest still says what was in it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(changed(error.to_string())),
            }
        }
        let temporary = dir.join(".tmp");
        match fs::remove_dir_all(&temporary) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(OutputError::Io { path: temporary, source });
            }
            _ => make_dir(&temporary)?,
        }
        for tree in ["data", "ddl"] {
            remove_unnamed(&dir.join(tree), &named)?;
        }
        Ok(Self {
            config: config.clone(),
            manifest,
            position,
            open: BTreeMap::new(),
            parts: BTreeMap::new(),
            finished: Vec::new(),
            touched: BTreeSet::new(),
            schemas,
            buffer: Vec::new(),
            clock: 0,
            next_temporary: 0,
        })
    }

    /// The position of the last checkpoint.
    pub fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    /// True if something was written since the last checkpoint.
    pub fn is_dirty(&self) -> bool {
        !self.open.is_empty() || !self.finished.is_empty()
    }

    /// Writes the changes of a slice.
    pub fn rows(&mut self, rows: &Rows) -> Result<(), OutputError> {
        for (change, number) in rows.changes.iter().zip(rows.first_change..) {
            self.change(rows, number, change)?;
        }
        Ok(())
    }

    fn change(&mut self, rows: &Rows, number: u32, change: &Change) -> Result<(), OutputError> {
        self.schema(&change.table, rows.commit_ts, rows.seq)?;
        let date = date(rows.commit_ts, self.config.by);
        let key = Key::Rows { table_id: change.table.id(), version: change.table.version(), date };
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        if !self.open.contains_key(&key) && self.config.format == Format::Csv {
            csv::header(&mut buffer, &change.table, &self.config.csv);
        }
        match self.config.format {
            Format::Jsonl => {
                json::change(&mut buffer, rows, number, change, self.config.jsonl.json_columns)
                    .map_err(|source| OutputError::Render { seq: rows.seq, source })?;
            }
            Format::Csv => csv::change(&mut buffer, rows, number, change, &self.config.csv),
        }
        let table = change.table.clone();
        let result = self.write(key, &buffer, rows.seq, rows.commit_ts, Some(&table));
        self.buffer = buffer;
        result
    }

    /// Writes a schema change and the definitions it made.
    pub fn ddl(&mut self, ddl: &Ddl) -> Result<(), OutputError> {
        for table in &ddl.after {
            self.schema(table, ddl.commit_ts, ddl.seq)?;
        }
        let mut buffer = Vec::new();
        json::ddl(&mut buffer, ddl).map_err(|source| OutputError::Render { seq: ddl.seq, source })?;
        self.write(
            Key::Ddl { date: date(ddl.commit_ts, self.config.by) },
            &buffer,
            ddl.seq,
            ddl.commit_ts,
            None,
        )
    }

    /// Writes a definition, the first time it is met.
    fn schema(&mut self, table: &Arc<Table>, commit_ts: CommitTs, seq: u64) -> Result<(), OutputError> {
        if self.schemas.contains(&(table.id(), table.version())) {
            return Ok(());
        }
        let document =
            json::definition(&table.definition).map_err(|source| OutputError::Render { seq, source })?;
        let path = self.table_dir(table).join(format!("schema-{}-{}.json", table.id(), table.version()));
        let entry = FileEntry {
            path: String::new(),
            kind: FileKind::Schema,
            database: table.database().to_owned(),
            table: table.name().to_owned(),
            table_id: table.id(),
            schema_version: table.version(),
            bytes: 0,
            json_columns: None,
            crc32c: String::new(),
            rows: 0,
            first_commit_ts: commit_ts.get(),
            last_commit_ts: commit_ts.get(),
            first_seq: seq,
            last_seq: seq,
        };
        let mut file = self.begin(entry)?;
        file.put(&document).map_err(|source| OutputError::Io { path: file.temporary.clone(), source })?;
        file.entry.rows = 1;
        self.finish(file, path)?;
        self.schemas.insert((table.id(), table.version()));
        Ok(())
    }

    /// How documents of JSON columns stand in the files of row changes.
    fn json_columns(&self) -> JsonColumns {
        match self.config.format {
            Format::Jsonl => self.config.jsonl.json_columns,
            Format::Csv => JsonColumns::Text,
        }
    }

    fn write(
        &mut self,
        key: Key,
        bytes: &[u8],
        seq: u64,
        commit_ts: CommitTs,
        table: Option<&Arc<Table>>,
    ) -> Result<(), OutputError> {
        self.clock += 1;
        if !self.open.contains_key(&key) {
            if self.open.len() >= self.config.open_files
                && let Some(idle) =
                    self.open.iter().min_by_key(|(_, file)| file.used).map(|(key, _)| key.clone())
            {
                self.close(&idle)?;
            }
            let entry = FileEntry {
                path: String::new(),
                kind: if table.is_some() { FileKind::Rows } else { FileKind::Ddl },
                database: table.map(|table| table.database().to_owned()).unwrap_or_default(),
                table: table.map(|table| table.name().to_owned()).unwrap_or_default(),
                table_id: table.map_or(0, |table| table.id()),
                schema_version: table.map_or(0, |table| table.version()),
                bytes: 0,
                json_columns: table.map(|_| self.json_columns()),
                crc32c: String::new(),
                rows: 0,
                first_commit_ts: commit_ts.get(),
                last_commit_ts: commit_ts.get(),
                first_seq: seq,
                last_seq: seq,
            };
            let file = self.begin(entry)?;
            self.open.insert(key.clone(), file);
        }
        let Some(file) = self.open.get_mut(&key) else { return Ok(()) };
        file.put(bytes).map_err(|source| OutputError::Io { path: file.temporary.clone(), source })?;
        file.entry.rows += 1;
        file.entry.last_seq = seq;
        file.entry.last_commit_ts = commit_ts.get();
        file.used = self.clock;
        if file.entry.bytes >= self.config.rotate_bytes.as_u64() {
            self.close(&key)?;
        }
        Ok(())
    }

    /// Begins a file under `.tmp`.
    fn begin(&mut self, entry: FileEntry) -> Result<OpenFile, OutputError> {
        self.next_temporary += 1;
        let temporary = self.config.dir.join(".tmp").join(self.next_temporary.to_string());
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(|source| OutputError::Io { path: temporary.clone(), source })?;
        Ok(OpenFile {
            file: BufWriter::with_capacity(BUFFER, file),
            temporary,
            entry,
            crc: 0,
            used: self.clock,
        })
    }

    fn table_dir(&self, table: &Table) -> PathBuf {
        self.config.dir.join("data").join(component(table.database())).join(component(table.name()))
    }

    /// Finishes the file of a key: it gets its name, which derives from its first seq.
    fn close(&mut self, key: &Key) -> Result<(), OutputError> {
        let Some(file) = self.open.remove(key) else { return Ok(()) };
        let seq = file.entry.first_seq;
        let part = self.parts.entry((key.clone(), seq)).or_insert(0);
        let number = *part;
        *part += 1;
        let path = match key {
            Key::Ddl { date } => {
                self.config.dir.join("ddl").join(date).join(format!("{seq:020}-{number:04}.jsonl"))
            }
            Key::Rows { table_id, version, date } => self
                .config
                .dir
                .join("data")
                .join(component(&file.entry.database))
                .join(component(&file.entry.table))
                .join(date)
                .join(format!(
                    "{seq:020}-{table_id}-{version}-{number:04}.{}",
                    self.config.format.extension()
                )),
        };
        self.finish(file, path)
    }

    /// Syncs a file and moves it to its place.
    fn finish(&mut self, file: OpenFile, path: PathBuf) -> Result<(), OutputError> {
        let OpenFile { file, temporary, mut entry, crc, .. } = file;
        let io = |source| OutputError::Io { path: temporary.clone(), source };
        let file = file.into_inner().map_err(|error| io(error.into_error()))?;
        file.sync_all().map_err(io)?;
        drop(file);
        let parent = path.parent().unwrap_or(&self.config.dir).to_owned();
        make_dir(&parent)?;
        // What the manifest does not name was removed at start, and nobody else works here: never over a file.
        if fs::symlink_metadata(&path).is_ok() {
            return Err(OutputError::Changed { path, what: "it is there, but should not be".to_owned() });
        }
        fs::rename(&temporary, &path).map_err(|source| OutputError::Io { path: path.clone(), source })?;
        let mut folder = parent.as_path();
        while folder.starts_with(&self.config.dir) {
            self.touched.insert(folder.to_owned());
            let Some(up) = folder.parent() else { break };
            folder = up;
        }
        entry.crc32c = format!("{crc:08x}");
        entry.path = path.strip_prefix(&self.config.dir).unwrap_or(&path).to_string_lossy().into_owned();
        metrics::exported(entry.rows, entry.bytes);
        self.finished.push(entry);
        Ok(())
    }

    /// Finishes all files and records them with the position after them. Once this returns, everything before the position
    /// is in the export.
    pub fn checkpoint(&mut self, position: Position) -> Result<(), OutputError> {
        let keys: Vec<Key> = self.open.keys().cloned().collect();
        for key in keys {
            self.close(&key)?;
        }
        for folder in std::mem::take(&mut self.touched) {
            sync_dir(&folder).map_err(|source| OutputError::Io { path: folder, source })?;
        }
        let checkpoint = Checkpoint { position: position.clone(), files: std::mem::take(&mut self.finished) };
        self.manifest.append(&checkpoint)?;
        self.parts.clear();
        self.position = Some(position);
        Ok(())
    }
}

impl OpenFile {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        self.entry.bytes += bytes.len() as u64;
        Ok(())
    }
}

fn make_dir(dir: &Path) -> Result<(), OutputError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| OutputError::Io { path: dir.to_owned(), source })
}

/// Removes files below `tree` that are not named, and folders that are empty then. Does not follow links.
fn remove_unnamed(tree: &Path, named: &HashSet<PathBuf>) -> Result<(), OutputError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| OutputError::Io { path, source }
    };
    let entries = match fs::read_dir(tree) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(io(tree))?,
    };
    for entry in entries {
        let entry = entry.map_err(io(tree))?;
        let path = entry.path();
        if entry.file_type().map_err(io(&path))?.is_dir() {
            remove_unnamed(&path, named)?;
            // Not empty is fine.
            let _ = fs::remove_dir(&path);
        } else if !named.contains(&path) {
            fs::remove_file(&path).map_err(io(&path))?;
        }
    }
    Ok(())
}

/// The folder for a commit_ts: its UTC date, or date and hour, or `all`.
fn date(commit_ts: CommitTs, by: By) -> String {
    let format = match by {
        By::None => return "all".to_owned(),
        By::Day => "%Y-%m-%d",
        By::Hour => "%Y-%m-%dT%H",
    };
    let milliseconds = i64::try_from(commit_ts.0.physical_ms()).unwrap_or(i64::MAX);
    match jiff::Timestamp::from_millisecond(milliseconds) {
        Ok(time) => time.strftime(format).to_string(),
        // Beyond the calendar: no such timestamp comes from PD.
        Err(_) => "all".to_owned(),
    }
}
