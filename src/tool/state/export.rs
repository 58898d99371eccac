//! State as JSON: one line about the export, and then one for each entry.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;

use serde::{Deserialize, Serialize};

use super::{Opened, Place, Trouble, Wrongs, grouped, scan};
use crate::clock::{Clock, SystemClock};
use crate::meter::key::Secret;
use crate::setting::{from_hex, hex};
use crate::store::Backend;
use crate::store::folder::VERSION;

/// The first line of an export.
#[derive(Serialize, Deserialize)]
pub(super) struct Header {
    postpone_state: u32,
    secret: String,
}

impl Header {
    const EXPECTED: &str = r#"what an export begins with: {"postpone_state":1,"secret":"..."}"#;

    pub(super) fn read(line: &[u8]) -> Result<Secret, String> {
        let header: Self =
            serde_json::from_slice(line).map_err(|_| format!("expected {}", Self::EXPECTED))?;
        if header.postpone_state > VERSION {
            return Err(format!(
                "it was written by a later version of postpone (state {}; this one reads up to \
                 {VERSION})",
                header.postpone_state
            ));
        }
        let secret = from_hex(header.secret.as_bytes()).and_then(|bytes| bytes.try_into().ok());
        secret.map(Secret::new).ok_or_else(|| format!("expected {}", Self::EXPECTED))
    }
}

/// `postpone state export`: everything that has not faded, to a file or to `out`.
pub fn export(
    place: &Place,
    file: Option<&Path>,
    out: &mut dyn Write,
    say: &mut dyn Write,
) -> Result<(), Trouble> {
    let (entries, faded, wrongs) = match file {
        None => lines(&place.existing()?, &mut BufWriter::new(out))?,
        Some(file) => {
            let beside = Beside::of(file)?;
            // On a thread of its own, since it takes the rights of who owns the state, and the file
            // is ours.
            let lines = || lines(&place.existing()?, &mut BufWriter::new(&beside.file));
            let told = thread::scope(|scope| scope.spawn(lines).join());
            let told = told.unwrap_or_else(|panic| resume_unwind(panic))?;
            beside.keep()?;
            told
        }
    };
    let [entries, faded] = [entries, faded].map(grouped);
    // The export itself is what counts.
    let _ = writeln!(say, "{entries} entries exported, {faded} expired ones left out");
    wrongs.told(place)
}

/// Writes the lines; how many entries that were, how many had faded, and what cannot be read.
fn lines(
    opened: &Opened<Option<Box<dyn Backend>>>,
    out: &mut dyn Write,
) -> Result<(u64, u64, Wrongs), Trouble> {
    let (backend, tables) = (opened.backend.as_deref(), &opened.tables);
    let now = SystemClock.now();
    let secret = hex(&opened.folder.secret().to_bytes());
    let header = serde_json::to_string(&Header { postpone_state: VERSION, secret });
    writeln!(out, "{}", header.map_err(io::Error::from)?)?;
    let (mut entries, mut faded, mut done) = (0, 0, Ok(()));
    let wrongs = scan(backend, tables, |table, key, bytes| {
        let (name, form) = tables[table];
        let no_record = || format!("{} bytes that are not such a record", bytes.len());
        if form.is_faded(bytes, now).ok_or_else(no_record)? {
            faded += 1;
        } else if done.is_ok() {
            entries += 1;
            // The object goes on with the fields of the record.
            let record = form.json(bytes).ok_or_else(no_record)?;
            let (key, fields) = (hex(&key), &record[1..]);
            done = writeln!(out, r#"{{"table":"{name}","key":"{key}",{fields}"#);
        }
        Ok(())
    });
    done?;
    out.flush()?;
    Ok((entries, faded, wrongs))
}

/// A file that is written beside its place, for the eyes of its owner, and moved there when it is
/// whole.
struct Beside {
    file: File,
    beside: PathBuf,
    path: PathBuf,
}

impl Beside {
    fn of(path: &Path) -> Result<Self, Trouble> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        let trouble = |error| Trouble::Output(format!("{}: {error}", beside.display()));
        if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
            let message = "it is no file; `-` is standard output";
            return Err(Trouble::Output(format!("{}: {message}", path.display())));
        }
        // One that is left over may be open to others.
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(trouble(error)),
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside);
        Ok(Self { file: file.map_err(trouble)?, beside: beside.clone(), path: path.to_owned() })
    }

    fn keep(self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.beside, &self.path)?;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // Gone already where it was kept.
        let _ = fs::remove_file(&self.beside);
    }
}
