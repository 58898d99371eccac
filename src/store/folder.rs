//! The folder that state lives in.
//!
//! ```text
//! identity     "postpone state 1", the secret that keys are made with: 32 hexadecimal digits, and
//!              since when this is the same database: "begun", and a time in RFC 3339
//! lock         held by the one process that uses the folder; its number is in it
//! db/          the tables, as src/store/disk.rs keeps them
//! *.damaged-*  what could not be read entirely, set aside at that second since 1970
//! ```
//!
//! A file without the line "begun", as earlier versions have written it, has begun when it was last
//! written: it is written once, with the secret.
//!
//! The number after "state" is the version of everything in the folder: of these files, of the
//! store, and of how records are written down. A later version of postpone reads what an earlier
//! one has written; the other way round it refuses, since it would misread.

use std::fmt::{self, Display, Formatter};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::disk::Disk;
use super::{Backend, Fault, Home};
use crate::clock::Time;
use crate::meter::key::Secret;
use crate::setting::hex;

/// The version of the state that this program writes, and the latest it can read.
pub const VERSION: u32 = 1;

/// Why a folder cannot be used.
#[derive(Debug)]
pub enum Refused {
    /// Another process uses it.
    InUse {
        /// Its number, if it could be read.
        by: Option<u32>,
    },
    /// A later version of postpone has written it.
    Newer {
        /// The version of its state.
        version: u32,
    },
    /// There is no state in it, or no folder.
    Missing,
    /// Its identity is damaged, or gone while there are tables.
    Damaged,
    /// The system does not let us.
    Unable(&'static str, io::Error),
}

impl Display for Refused {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse { by: Some(pid) } => write!(f, "process {pid} is using it"),
            Self::InUse { by: None } => f.write_str("another process is using it"),
            Self::Newer { version } => write!(
                f,
                "it was written by a later version of postpone (state {version}; this one reads up \
                 to {VERSION}): install that version again, or name another folder"
            ),
            Self::Missing => f.write_str("there is no state in it"),
            Self::Damaged => f.write_str(
                "the file `identity` is damaged or gone, and its tables mean nothing without it",
            ),
            Self::Unable(what, error) => write!(f, "cannot {what}: {error}"),
        }
    }
}

/// A state folder that is ours alone for as long as this value lives.
pub struct Folder {
    path: PathBuf,
    tables: Vec<&'static str>,
    secret: Secret,
    begun: Time,
    set_aside: Vec<String>,
    is_new: bool,
    _lock: File,
}

impl Folder {
    /// Takes a folder for ourselves; a missing one is made. Reads nothing but its identity; where
    /// that is damaged or gone, it is set aside with the tables, which mean nothing without it.
    pub fn open(path: &Path, now: Time) -> Result<Self, Refused> {
        let unable = |what| move |error| Refused::Unable(what, error);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(unable("make the folder"))?;
        let lock = take_lock(&path.join("lock"))?;
        let identity = Identity::of(path)?;
        let is_new = !matches!(identity, Identity::Ours { .. });
        let mut set_aside = Vec::new();
        let (secret, begun) = match identity {
            Identity::Ours { secret, begun } => (secret, begun),
            Identity::Newer { version } => return Err(Refused::Newer { version }),
            Identity::Missing | Identity::Damaged => {
                for name in ["identity", "db"].into_iter().filter(|name| path.join(name).exists()) {
                    let aside =
                        aside(path, name, now).map_err(unable("set aside what is damaged"))?;
                    set_aside.push(aside);
                }
                let secret =
                    new_identity(path, now).map_err(unable("write the file `identity`"))?;
                (secret, now)
            }
        };
        let (path, tables) = (path.into(), Vec::new());
        Ok(Self { path, tables, secret, begun, set_aside, is_new, _lock: lock })
    }

    /// Takes a folder as it is: nothing is made, and nothing is set aside.
    pub fn existing(path: &Path) -> Result<Self, Refused> {
        // Looked at first, so that no lock is made in a folder that has nothing to do with us.
        if let Identity::Missing = Identity::of(path)? {
            return Err(if path.join("db").exists() { Refused::Damaged } else { Refused::Missing });
        }
        let lock = take_lock(&path.join("lock"))?;
        let (secret, begun) = match Identity::of(path)? {
            Identity::Ours { secret, begun } => (secret, begun),
            Identity::Newer { version } => return Err(Refused::Newer { version }),
            Identity::Missing | Identity::Damaged => return Err(Refused::Damaged),
        };
        let set_aside = Vec::new();
        let is_new = false;
        let (path, tables) = (path.into(), Vec::new());
        Ok(Self { path, tables, secret, begun, set_aside, is_new, _lock: lock })
    }

    /// Gives it another secret. Only where no table has an entry: those would mean nothing.
    pub fn adopt(&mut self, secret: Secret) -> io::Result<()> {
        write_identity(&self.path, &secret, self.begun)?;
        self.secret = secret;
        Ok(())
    }

    /// Whether there are tables in it.
    pub fn has_tables(&self) -> bool {
        self.path.join("db").exists()
    }

    /// Names the tables that are kept in it.
    #[must_use]
    pub fn with_tables(self, tables: Vec<&'static str>) -> Self {
        Self { tables, ..self }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The secret that keys are made with.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Since when this is the same database.
    pub fn begun(&self) -> Time {
        self.begun
    }

    /// What had to be set aside when it was opened.
    pub fn was_set_aside(&self) -> &[String] {
        &self.set_aside
    }

    /// Whether nothing that was kept in it is known any more.
    pub fn is_new(&self) -> bool {
        self.is_new
    }
}

impl Home for Folder {
    fn open(&self) -> Result<Box<dyn Backend>, Fault> {
        Ok(Box::new(Disk::open(&self.path.join("db"), &self.tables)?))
    }

    fn set_aside(&self, now: Time) -> io::Result<String> {
        aside(&self.path, "db", now)
    }
}

/// Moves a file or folder out of the way, and says where to.
fn aside(folder: &Path, name: &str, now: Time) -> io::Result<String> {
    let second = now.as_nanos() / 1_000_000_000;
    let mut to = folder.join(format!("{name}.damaged-{second}"));
    let mut more = 0;
    while to.exists() {
        more += 1;
        to = folder.join(format!("{name}.damaged-{second}-{more}"));
    }
    fs::rename(folder.join(name), &to)?;
    Ok(to.display().to_string())
}

fn take_lock(path: &Path) -> Result<File, Refused> {
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| Refused::Unable("open the file `lock`", error))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // Who it is helps, but is not known in the first moment.
            let _ = lock.read_to_string(&mut holder);
            return Err(Refused::InUse { by: holder.trim().parse().ok() });
        }
        Err(error) => return Err(Refused::Unable("lock the file `lock`", error.into())),
    }
    // For people only: the lock is what counts.
    let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
    Ok(lock)
}

/// What the file `identity` says.
enum Identity {
    Ours { secret: Secret, begun: Time },
    Newer { version: u32 },
    Damaged,
    Missing,
}

impl Identity {
    fn of(folder: &Path) -> Result<Self, Refused> {
        let path = folder.join("identity");
        match fs::read(&path) {
            Ok(text) => {
                let written = fs::metadata(&path).map_or(0, |file| file.mtime());
                let written = Time::from_secs(u64::try_from(written).unwrap_or(0));
                Ok(Self::read(&text, written))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::Missing),
            Err(error) => Err(Refused::Unable("read the file `identity`", error)),
        }
    }

    /// Reads it; `written` is when the file was.
    fn read(text: &[u8], written: Time) -> Self {
        let parse = || {
            let mut lines = str::from_utf8(text).ok()?.lines();
            let version: u32 = lines.next()?.strip_prefix("postpone state ")?.parse().ok()?;
            if version > VERSION {
                return Some(Self::Newer { version });
            }
            let digits = lines.next()?.strip_prefix("secret ").filter(|d| d.len() == 32)?;
            let secret = u128::from_str_radix(digits, 16).ok()?;
            let begun = lines.next().and_then(|line| line.strip_prefix("begun "));
            let begun = begun.and_then(|time| time.parse().ok()).unwrap_or(written);
            Some(Self::Ours { secret: Secret::new(secret.to_be_bytes()), begun })
        };
        parse().unwrap_or(Self::Damaged)
    }
}

fn new_identity(folder: &Path, now: Time) -> io::Result<Secret> {
    let secret = random_bytes()?;
    let secret = Secret::new(secret);
    write_identity(folder, &secret, now)?;
    Ok(secret)
}

/// What a new secret is made of.
pub fn random_bytes() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes)
}

/// Written beside its place and then moved there, so that it is there whole or not at all.
fn write_identity(folder: &Path, secret: &Secret, begun: Time) -> io::Result<()> {
    let beside = folder.join("identity.new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    let digits = hex(&secret.to_bytes());
    write!(file, "postpone state {VERSION}\nsecret {digits}\nbegun {begun}\n")?;
    file.sync_all()?;
    fs::rename(&beside, folder.join("identity"))?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_secs(1_800_000_000);

    /// A folder that is removed with its contents.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let name = format!("postpone-folder-{}-{name}", std::process::id());
            let path = std::env::temp_dir().join(name);
            let _ = fs::remove_dir_all(&path);
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn refused(path: &Path) -> String {
        Folder::open(path, NOW).err().expect("it was opened").to_string()
    }

    #[test]
    fn the_secret_is_made_once_and_read_again() {
        let scratch = Scratch::new("secret");
        let key = |folder: &Folder| folder.secret().key("test").finish();
        let first = Folder::open(&scratch.0, NOW).unwrap();
        let made = key(&first);
        assert!(first.is_new());
        drop(first);
        let again = Folder::open(&scratch.0, NOW).unwrap();
        assert_eq!((key(&again), again.is_new()), (made, false));
    }

    #[test]
    fn it_is_known_since_when_it_is_the_same_database() {
        let scratch = Scratch::new("begun");
        drop(Folder::open(&scratch.0, NOW).unwrap());
        let later = NOW + std::time::Duration::from_secs(60);
        let begun = || Folder::open(&scratch.0, later).unwrap().begun();
        assert_eq!(begun(), NOW);
        let identity = scratch.0.join("identity");
        let text = fs::read_to_string(&identity).unwrap();
        let old: String = text.lines().take(2).map(|line| format!("{line}\n")).collect();
        fs::write(&identity, old).unwrap();
        let written = fs::metadata(&identity).unwrap().mtime();
        assert_eq!(
            begun(),
            Time::from_secs(written as u64),
            "an earlier version wrote no such line"
        );
    }

    #[test]
    fn a_second_process_is_told_who_has_the_folder() {
        let scratch = Scratch::new("lock");
        let _first = Folder::open(&scratch.0, NOW).unwrap();
        let expected = format!("process {} is using it", std::process::id());
        assert_eq!(refused(&scratch.0), expected);
    }

    #[test]
    fn state_of_a_later_version_is_refused_and_left_as_it_is() {
        let scratch = Scratch::new("newer");
        drop(Folder::open(&scratch.0, NOW).unwrap());
        let identity = "postpone state 2\nsecret 00000000000000000000000000000001\n";
        fs::write(scratch.0.join("identity"), identity).unwrap();
        let why = refused(&scratch.0);
        assert!(why.starts_with("it was written by a later version of postpone (state 2"), "{why}");
        assert_eq!(fs::read_to_string(scratch.0.join("identity")).unwrap(), identity);
    }

    #[test]
    fn a_damaged_identity_is_set_aside_with_the_tables_that_mean_nothing_without_it() {
        let scratch = Scratch::new("damaged");
        for text in ["", "hello", "postpone state 1\n", "postpone state 1\nsecret 12\n", "\u{0}"] {
            drop(Folder::open(&scratch.0, NOW).unwrap());
            fs::create_dir_all(scratch.0.join("db")).unwrap();
            fs::write(scratch.0.join("identity"), text).unwrap();
            let folder = Folder::open(&scratch.0, NOW).unwrap();
            assert!(folder.is_new() && !scratch.0.join("db").exists());
            assert_eq!(folder.was_set_aside().len(), 2);
            for aside in folder.was_set_aside() {
                assert!(aside.contains(".damaged-1800000000") && Path::new(aside).exists());
            }
        }
        fs::create_dir(scratch.0.join("db")).unwrap();
        fs::remove_file(scratch.0.join("identity")).unwrap();
        assert_eq!(Folder::open(&scratch.0, NOW).unwrap().was_set_aside().len(), 1);
    }
}
