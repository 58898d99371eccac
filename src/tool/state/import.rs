//! What an export, or a dump of another daemon's, knows joins what is there.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::export::Header;
use super::{Opened, Place, Progress, Table, Trouble, grouped, with_tables};
use crate::clock::{Clock, SystemClock, Time};
use crate::meter::key::Secret;
use crate::meter::record::written;
use crate::policy::imported::Imported;
use crate::setting::from_hex;
use crate::store::folder::{Folder, Refused};
use crate::store::{Backend, Change, RawKey};
use crate::tool::foreign::{self, Format, Lines, Met, Passing};

/// `postpone state import`: what an export, or a dump of another daemon's, knows is known here too.
pub fn import(place: &Place, file: Option<&Path>, out: &mut dyn Write) -> Result<(), Trouble> {
    let name = file.map_or("standard input".into(), |file| file.display().to_string());
    let unreadable = |error: io::Error| Trouble::Input(format!("{name}: {error}"));
    let mut input: Box<dyn Read> = match file {
        Some(file) => Box::new(File::open(file).map_err(unreadable)?),
        None => Box::new(io::stdin()),
    };
    let mut head = Vec::new();
    input.by_ref().take(Format::HEAD as u64).read_to_end(&mut head).map_err(unreadable)?;
    let in_file = |trouble| match trouble {
        Trouble::Data(what) => Trouble::Data(format!("{name}: {what}")),
        Trouble::Input(what) => Trouble::Input(format!("{name}: {what}")),
        other => other,
    };
    let format = Format::of(&head, &name).map_err(|wrong| in_file(wrong.into()))?;
    let mut input = BufReader::new(head.as_slice().chain(input));
    let mut lines = Lines::of(&mut input);
    let secret = match format {
        Format::Export => Some(header(&mut lines).map_err(in_file)?),
        Format::Postgrey | Format::Sqlgrey => None,
    };

    let was_there = place.path.exists();
    let opened = place.filled_by(secret)?;
    let mut merge = Merge::into(place, &*opened.backend, &opened.tables);
    let read = match format {
        Format::Export => exported(&mut lines, &mut merge),
        Format::Postgrey => {
            let greylist = &place.settings.greylist;
            let passing =
                Passing { delay: greylist.delay.duration(), passes: greylist.proven_after.get() };
            let secret = opened.folder.secret();
            foreign::postgrey(&mut lines, passing, &mut |met| merge.met(secret, met))
        }
        Format::Sqlgrey => {
            let secret = opened.folder.secret();
            foreign::sqlgrey(&mut lines, &mut |met| merge.met(secret, met))
        }
    };
    // What came before a bad line is not lost.
    let (read, written) = (read.map_err(in_file), merge.flush());
    writeln!(out, "{}", merge.tally)?;
    if !was_there && rustix::process::geteuid().is_root() {
        let path = place.path.display();
        writeln!(
            out,
            "{path} was created and belongs to root: give it to the user that the daemon runs as, \
             with chown -R"
        )?;
    }
    read.and(written)
}

fn header(lines: &mut Lines<'_>) -> Result<Secret, Trouble> {
    let line = lines.next_line()?.unwrap_or_default();
    Header::read(line).map_err(|what| Trouble::Data(format!("line 1: {what}")))
}

/// One entry of an export.
#[derive(Deserialize)]
struct Line {
    table: String,
    key: String,
    #[serde(flatten)]
    record: Map<String, Value>,
}

fn exported(lines: &mut Lines<'_>, merge: &mut Merge<'_>) -> Result<(), Trouble> {
    let expected = |what: &dyn Display| {
        format!(
            r#"a line as `postpone state export` writes it, {{"table":...,"key":...,...}}: {what}"#
        )
    };
    while let Some(line) = lines.next_line()? {
        if line.is_empty() {
            continue;
        }
        if let Err(what) = merge.line(line)? {
            return Err(lines.wrong(expected(&what)).into());
        }
    }
    Ok(())
}

impl Place {
    /// The folder, made if it is missing, with this secret if it is to have one, and its tables.
    fn filled_by(&self, secret: Option<Secret>) -> Result<Opened<Box<dyn Backend>>, Trouble> {
        self.take_rights()?;
        let folder = match Folder::existing(&self.path) {
            Err(Refused::Missing) => Folder::open(&self.path, SystemClock.now()),
            other => other,
        };
        let (mut folder, tables) = with_tables(folder.map_err(|refused| self.refused(&refused))?);
        let backend = self.open(&folder)?;
        if let Some(secret) = secret.filter(|s| s.to_bytes() != folder.secret().to_bytes()) {
            for (name, first) in tables.iter().flat_map(|(n, _)| (0..=u8::MAX).map(move |b| (n, b)))
            {
                let mut entries = 0;
                let scanned = backend.scan(name, first, &mut |_, _| entries += 1);
                scanned.map_err(|fault| self.fault(&fault))?;
                if entries > 0 {
                    return Err(Trouble::State(format!(
                        "{}: it has entries made with another secret, and the two cannot be \
                         merged: import into another folder, or move this one away",
                        self.path.display()
                    )));
                }
            }
            let unable = |error| self.refused(&Refused::Unable("write the file `identity`", error));
            folder.adopt(secret).map_err(unable)?;
        }
        Ok(Opened { backend, tables, folder })
    }
}

/// Entries that are committed together.
const BATCH: usize = 16_384;

/// Joins entries with what is there.
struct Merge<'a> {
    place: &'a Place,
    backend: &'a dyn Backend,
    tables: &'a [Table],
    now: Time,
    /// By table and key, so that what is there is looked up in its order.
    batch: BTreeMap<(usize, RawKey), Vec<u8>>,
    tally: Tally,
    progress: Progress,
}

/// What has become of what was read.
#[derive(Default)]
struct Tally {
    read: u64,
    imported: u64,
    known: u64,
    faded: u64,
    pending: u64,
    odd: u64,
}

impl Display for Tally {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { read, imported, known, faded, pending, odd } = self;
        let [read, imported, known] = [*read, *imported, *known].map(grouped);
        write!(f, "{read} entries read, {imported} imported, {known} already known")?;
        for (number, what) in [
            (faded, "expired"),
            (pending, "not passed yet"),
            (odd, "without a usable client, sender or time"),
        ] {
            if *number > 0 {
                write!(f, ", {} left out ({what})", grouped(*number))?;
            }
        }
        Ok(())
    }
}

impl<'a> Merge<'a> {
    fn into(place: &'a Place, backend: &'a dyn Backend, tables: &'a [Table]) -> Self {
        Self {
            place,
            backend,
            tables,
            now: SystemClock.now(),
            batch: BTreeMap::new(),
            tally: Tally::default(),
            progress: Progress::new(),
        }
    }

    /// Takes in a line of an export; says what is wrong with it, if something is.
    fn line(&mut self, line: &[u8]) -> Result<Result<(), String>, Trouble> {
        let parsed = serde_json::from_slice(line).map_err(|error| without_place(&error));
        let read = parsed.and_then(|Line { table, key, record }| {
            let number = self.tables.iter().position(|(name, _)| *name == table);
            let number = number.ok_or_else(|| {
                let names: Vec<_> = self.tables.iter().map(|(name, _)| *name).collect();
                format!("the table is one of {}", names.join(", "))
            })?;
            let raw = from_hex(key.as_bytes()).and_then(|bytes| RawKey::try_from(bytes).ok());
            let raw = raw.ok_or("the key has 32 hexadecimal digits")?;
            let (_, form) = self.tables[number];
            Ok((number, raw, form.read_json(Value::Object(record))?))
        });
        match read {
            Ok((table, key, bytes)) => self.add(table, key, bytes).map(Ok),
            Err(what) => Ok(Err(what)),
        }
    }

    /// Takes in what another daemon knew.
    fn met(&mut self, secret: &Secret, met: Met<'_>) -> Result<(), Trouble> {
        let table = self.tables.iter().position(|(name, _)| *name == "imported");
        let table = table.expect("greylisting keeps this table");
        match met {
            Met::Known(known, last) => {
                // What lies ahead was written by a clock that was wrong.
                let until = last.min(self.now) + self.place.settings.greylist.forget.duration();
                let key = known.key(secret).to_bytes();
                return self.add(table, key, written(&Imported { until }));
            }
            Met::Pending => self.tally.pending += 1,
            Met::Odd => self.tally.odd += 1,
        }
        self.tally.read += 1;
        self.progress.entry();
        Ok(())
    }

    fn add(&mut self, table: usize, key: RawKey, bytes: Vec<u8>) -> Result<(), Trouble> {
        self.tally.read += 1;
        self.progress.entry();
        let (_, form) = self.tables[table];
        if form.is_faded(&bytes, self.now) == Some(true) {
            self.tally.faded += 1;
            return Ok(());
        }
        match self.batch.get_mut(&(table, key)) {
            Some(other) => {
                self.tally.known += 1;
                if let Some(both) = form.folded(other, &bytes) {
                    *other = both;
                }
            }
            None => _ = self.batch.insert((table, key), bytes),
        }
        if self.batch.len() < BATCH { Ok(()) } else { self.flush() }
    }

    /// Writes what was read, joined with what is there.
    fn flush(&mut self) -> Result<(), Trouble> {
        let mut changes = Vec::with_capacity(self.batch.len());
        let mut known = 0;
        for ((table, key), bytes) in std::mem::take(&mut self.batch) {
            let (name, form) = self.tables[table];
            let there = self.backend.get(name, key).map_err(|fault| self.place.fault(&fault))?;
            // In the form that folding makes, which may be another than it was first written in.
            let there = there.map(|there| form.folded(&there, &there).unwrap_or(there));
            let both = there.as_ref().and_then(|there| form.folded(there, &bytes)).unwrap_or(bytes);
            if there.as_ref() == Some(&both) {
                known += 1;
            } else {
                changes.push(Change { table: name, key, value: Some(both) });
            }
        }
        if !changes.is_empty() {
            self.backend.commit(&changes).map_err(|fault| self.place.fault(&fault))?;
        }
        self.tally.known += known;
        self.tally.imported += changes.len() as u64;
        Ok(())
    }
}

/// What is wrong, without the place: it stands in one line, whose number is told.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().map_or(text.clone(), str::to_owned)
}
