//! `postpone state`: what a stopped daemon has kept, examined, written out, and filled from
//! elsewhere.
//!
//! An export begins with a line about itself, and has one more for each entry:
//!
//! ```text
//! {"postpone_state":1,"secret":"0123456789abcdef0123456789abcdef"}
//! {"table":"passed","key":"33d3...","until":"2026-12-27T22:07:20.000000000Z"}
//! ```
//!
//! The keys mean something only to who has the secret they were made with, so it stands there too:
//! an export is to be kept as close as the folder itself.

mod export;
mod import;

use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::export::export;
pub use self::import::import;
use super::foreign::Wrong;
use crate::clock::{Clock, Stopwatch, SystemClock};
use crate::config::{Settings, Unusable};
use crate::meter::record::Form;
use crate::policy::{Bounds, Memory};
use crate::setting::{OrNone, hex};
use crate::store::folder::{Folder, Refused, VERSION};
use crate::store::owner::{Owner, keep_private};
use crate::store::{Backend, Fault, Home, RawKey};

/// Why it was not done, or not to its end.
#[derive(Debug)]
pub enum Trouble {
    /// The settings cannot be used, or say that there is no state.
    Settings(String),
    /// The state cannot be used now.
    State(String),
    /// What was read is damaged, or not what was expected.
    Data(String),
    /// There is nothing to read.
    Input(String),
    /// It cannot be written where it should be.
    Output(String),
    /// Nobody reads what is written.
    Unheard(io::Error),
}

impl From<Wrong> for Trouble {
    fn from(wrong: Wrong) -> Self {
        match wrong {
            Wrong::Line(number, what) => Self::Data(format!("line {number}: {what}")),
            Wrong::Whole(what) => Self::Data(what),
            Wrong::Unreadable(error) => Self::Input(format!("it cannot be read: {error}")),
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::BrokenPipe => Self::Unheard(error),
            _ => Self::Output(format!("it cannot be written: {error}")),
        }
    }
}

/// Where the state is, and what the settings say of it.
pub struct Place {
    path: PathBuf,
    settings: Settings,
}

impl Place {
    /// This folder, or the one that the settings name.
    pub fn find(path: Option<PathBuf>, file: Option<&Path>) -> Result<Self, Trouble> {
        let settings = match file.map(Settings::load) {
            None => Settings::default(),
            Some(Ok(checked)) => checked.settings,
            Some(Err(Unusable(report))) => return Err(Trouble::Settings(report.to_string())),
        };
        let path = match (path, &settings.state.path) {
            (Some(path), _) => path,
            (None, OrNone::Some(folder)) => folder.path().to_owned(),
            (None, OrNone::None) => {
                let message = "no state is kept: state.path is \"none\"; give the folder with \
                               --path";
                return Err(Trouble::Settings(message.into()));
            }
        };
        Ok(Self { path, settings })
    }

    fn refused(&self, refused: &Refused) -> Trouble {
        let stop = match refused {
            Refused::InUse { .. } => "; stop the daemon first",
            _ => "",
        };
        let message = format!("{}: {refused}{stop}", self.path.display());
        match refused {
            Refused::Damaged => Trouble::Data(message),
            _ => Trouble::State(message),
        }
    }

    fn fault(&self, fault: &Fault) -> Trouble {
        let message = format!("{}: {fault}", self.path.display());
        match fault {
            Fault::Damaged(_) => Trouble::Data(message),
            Fault::Unable(_) => Trouble::State(message),
        }
    }

    fn open(&self, folder: &Folder) -> Result<Box<dyn Backend>, Trouble> {
        folder.open().map_err(|fault| self.fault(&fault))
    }

    /// From now on root is no more than who owns the folder: the daemon's user, who may have put
    /// links there, is to own what is made in it too.
    fn take_rights(&self) -> Result<(), Trouble> {
        let unable = |error| self.refused(&Refused::Unable("act as its owner", error));
        keep_private();
        let owner = Owner::of(&self.path).map_err(unable)?;
        owner.map_or(Ok(()), |owner| owner.take_rights()).map_err(unable)
    }

    /// The folder as it is, and its tables if there are any yet.
    fn existing(&self) -> Result<Opened<Option<Box<dyn Backend>>>, Trouble> {
        self.take_rights()?;
        let folder = Folder::existing(&self.path).map_err(|refused| self.refused(&refused))?;
        let (folder, tables) = with_tables(folder);
        let backend = folder.has_tables().then(|| self.open(&folder)).transpose()?;
        Ok(Opened { backend, tables, folder })
    }
}

/// A folder that is ours as long as this lives.
struct Opened<B> {
    /// It goes before the folder does.
    backend: B,
    tables: Vec<Table>,
    folder: Folder,
}

/// A table, and what can be done with its records.
type Table = (&'static str, &'static dyn Form);

fn with_tables(folder: Folder) -> (Folder, Vec<Table>) {
    // It is only asked what it keeps.
    let memory = Memory::new(folder.secret(), Bounds { max_clients: 1, max_triplets: 1 });
    let tables: Vec<_> = memory.kept().map(|(name, table)| (name, table.form())).collect();
    let names = tables.iter().map(|(name, _)| *name).collect();
    (folder.with_tables(names), tables)
}

/// Tells how far a long work has come, on standard error.
struct Progress {
    entries: u64,
    told: Stopwatch,
    terminal: bool,
}

impl Progress {
    fn new() -> Self {
        Self { entries: 0, told: Stopwatch::start(), terminal: io::stderr().is_terminal() }
    }

    fn entry(&mut self) {
        self.entries += 1;
        let every = Duration::from_secs(if self.terminal { 1 } else { 5 });
        if self.entries.is_multiple_of(1_024) && self.told.elapsed() >= every {
            self.told = Stopwatch::start();
            // Nobody needs it.
            let _ = writeln!(io::stderr(), "… {} entries", grouped(self.entries));
        }
    }
}

/// A number with its thousands apart: `3,400,000`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let places = digits.chars().enumerate();
    places.fold(String::new(), |mut text, (at, digit)| {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
        text
    })
}

/// Shows every entry with the number of its table; what is damaged is told by the place.
fn scan(
    backend: Option<&dyn Backend>,
    tables: &[Table],
    mut each: impl FnMut(usize, RawKey, &[u8]) -> Result<(), String>,
) -> Wrongs {
    let (mut progress, mut wrongs) = (Progress::new(), Wrongs::default());
    let Some(backend) = backend else { return wrongs };
    if let Some(what) = backend.left_out() {
        wrongs.note(format_args!("lost: {what}"));
    }
    for (number, (name, _)) in tables.iter().enumerate() {
        for first in 0..=u8::MAX {
            let scanned = backend.scan(name, first, &mut |key, bytes| {
                progress.entry();
                if let Err(what) = each(number, key, bytes) {
                    wrongs.note(format_args!("{name}: {what} under {}", hex(&key)));
                }
            });
            if let Err(fault) = scanned {
                let place = format_args!("among the keys that begin with {first:02x}");
                wrongs.note(format_args!("{name}: {place}: {fault}"));
            }
        }
    }
    wrongs
}

/// What cannot be read.
#[derive(Default)]
struct Wrongs {
    told: Vec<String>,
    all: u64,
}

impl Wrongs {
    fn note(&mut self, what: impl Display) {
        self.all += 1;
        // More of them say no more.
        if self.told.len() < 10 {
            self.told.push(what.to_string());
        }
    }

    fn told(self, place: &Place) -> Result<(), Trouble> {
        let shown = self.told.len() as u64;
        match self.all {
            0 => Ok(()),
            all => Err(Trouble::Data(format!(
                "{}: not all of it can be read:\n{}{}",
                place.path.display(),
                self.told.join("\n"),
                if all > shown {
                    format!("\nand {} more", grouped(all - shown))
                } else {
                    String::new()
                },
            ))),
        }
    }
}

/// `postpone state check`: reads everything and says what is wrong with it.
pub fn check(place: &Place, out: &mut dyn Write) -> Result<(), Trouble> {
    let now = SystemClock.now();
    let opened = place.existing()?;
    let (backend, tables) = (opened.backend.as_deref(), &opened.tables);
    let mut counts = vec![[0, 0, 0]; tables.len()];
    let wrongs = scan(backend, tables, |table, _, bytes| {
        let [entries, faded, unreadable] = &mut counts[table];
        *entries += 1;
        match tables[table].1.is_faded(bytes, now) {
            Some(is_faded) => *faded += u64::from(is_faded),
            None => {
                *unreadable += 1;
                return Err(format!("{} bytes that are not such a record", bytes.len()));
            }
        }
        Ok(())
    });
    let bytes = grouped(backend.map_or(0, Backend::bytes));
    writeln!(out, "{}: state {VERSION}, {bytes} bytes on disk\n", place.path.display())?;
    writeln!(out, "{:<10} {:>14} {:>14} {:>14}", "table", "entries", "expired", "unreadable")?;
    for ((name, _), counts) in tables.iter().zip(counts) {
        let [entries, faded, unreadable] = counts.map(grouped);
        writeln!(out, "{name:<10} {entries:>14} {faded:>14} {unreadable:>14}")?;
    }
    if wrongs.all == 0 {
        writeln!(out, "\nall of it can be read")?;
    }
    wrongs.told(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_stand_apart() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (3_400_000, "3,400,000")] {
            assert_eq!(grouped(number), text);
        }
    }
}
