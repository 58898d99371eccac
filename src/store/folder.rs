//! The folder that state lives in.
//!
//! ```text
//! identity     "postpone state 1", the secret that keys are made with: 32 hexadecimal digits, since
//!              when this is the same database: "begun", and a time in RFC 3339, and the checksum of
//!              these lines: "check", and 16 hexadecimal digits (xxh3)
//! last-run     when somebody last ran over it with a clock that was believed: a time in RFC 3339
//! lock         held by the one process that uses the folder; its number is in it
//! db/          the tables, as src/store/disk.rs keeps them
//! *.damaged-*  what could not be read entirely, set aside at that second since 1970
//! ```
//!
//! A file without the line "begun", as earlier versions have written it, has begun when it was last
//! written: it is written once, with the secret. One without the line "check" is given it when it
//! is next opened.
//!
//! The files are open to their owner alone, whatever the umask is, and no link is followed to them:
//! see `private`.
//!
//! The number after "state" is the version of everything in the folder: of these files, of the
//! store, and of how records are written down. A later version of postpone reads what an earlier
//! one has written; the other way round it refuses, since it would misread.

use std::fmt::{self, Display, Formatter};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use xxhash_rust::xxh3::xxh3_64;

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
                "the file `identity` is damaged or missing, and the tables cannot be used without \
                 it",
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
    /// Whether others had been let write in it.
    was_open: bool,
    lock: File,
    /// The number of the folder of tables that is in use; 0 before it is.
    tables_inode: AtomicU64,
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
        let was_open = close_to_others(path).map_err(unable("close the folder to others"))?;
        let lock = take_lock(&path.join("lock"))?;
        let identity = Identity::of(path)?;
        let is_new = !matches!(identity, Identity::Ours { .. });
        let mut set_aside = Vec::new();
        let (secret, begun) = match identity {
            Identity::Ours { secret, begun, checked } => {
                if !checked {
                    write_identity(path, &secret, begun)
                        .map_err(unable("write the file `identity`"))?;
                }
                (secret, begun)
            }
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
        Ok(Self { set_aside, is_new, was_open, ..Self::of(path, secret, begun, lock) })
    }

    fn of(path: &Path, secret: Secret, begun: Time, lock: File) -> Self {
        Self {
            path: path.into(),
            tables: Vec::new(),
            secret,
            begun,
            set_aside: Vec::new(),
            is_new: false,
            was_open: false,
            lock,
            tables_inode: AtomicU64::new(0),
        }
    }

    /// Takes a folder as it is: nothing is made, and nothing is set aside.
    pub fn existing(path: &Path) -> Result<Self, Refused> {
        // Looked at first, so that no lock is made in a folder that has nothing to do with us.
        if let Identity::Missing = Identity::of(path)? {
            return Err(if path.join("db").exists() { Refused::Damaged } else { Refused::Missing });
        }
        let lock = take_lock(&path.join("lock"))?;
        let (secret, begun) = match Identity::of(path)? {
            Identity::Ours { secret, begun, .. } => (secret, begun),
            Identity::Newer { version } => return Err(Refused::Newer { version }),
            Identity::Missing | Identity::Damaged => return Err(Refused::Damaged),
        };
        Ok(Self::of(path, secret, begun, lock))
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

    /// Whether others than its owner had been let write in it, until it was opened.
    pub fn was_open_to_others(&self) -> bool {
        self.was_open
    }

    /// Whether nothing that was kept in it is known any more.
    pub fn is_new(&self) -> bool {
        self.is_new
    }
}

impl Home for Folder {
    fn open(&self) -> Result<Box<dyn Backend>, Fault> {
        let db = self.path.join("db");
        let disk = Disk::open(&db, &self.tables)?;
        self.tables_inode.store(inode(&db).unwrap_or(0), Ordering::Relaxed);
        Ok(Box::new(disk))
    }

    fn set_aside(&self, now: Time) -> io::Result<String> {
        self.tables_inode.store(0, Ordering::Relaxed);
        aside(&self.path, "db", now)
    }

    fn begins_anew(&mut self, now: Time) -> io::Result<()> {
        self.begun = now;
        write_identity(&self.path, &self.secret, now)
    }

    fn last_ran(&self) -> Option<Time> {
        let file = private(&self.path.join(LAST_RUN), OpenOptions::new().read(true)).ok()?;
        let mut text = String::new();
        file.take(LONGEST_IDENTITY).read_to_string(&mut text).ok()?;
        text.trim_end().parse().ok()
    }

    fn runs(&self, now: Time) -> io::Result<()> {
        write_whole(&self.path, LAST_RUN, &format!("{now}\n"))
    }

    fn is_in_place(&self) -> bool {
        let tables = match self.tables_inode.load(Ordering::Relaxed) {
            0 => true,
            used => inode(&self.path.join("db")) == Some(used),
        };
        tables && self.is_locked() && self.is_ours()
    }

    fn move_in(&mut self, now: Time) -> io::Result<()> {
        self.move_into(now).map_err(|error| match error.kind() {
            // A confined daemon may write in the folder that it has opened, and in no other one.
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => io::Error::new(
                error.kind(),
                format!("{error}: make the folder, and restart postpone"),
            ),
            _ => error,
        })
    }
}

impl Folder {
    fn move_into(&mut self, now: Time) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.path)?;
        close_to_others(&self.path)?;
        if !self.is_locked() {
            self.lock = take_lock(&self.path.join("lock")).map_err(|refused| match refused {
                Refused::Unable(_, error) => error,
                refused => io::Error::other(refused.to_string()),
            })?;
        }
        // What somebody else has put there is not ours to remove.
        let strange: &[_] = if self.is_ours() { &["db"] } else { &["identity", "db"] };
        for name in strange.iter().filter(|name| self.path.join(name).exists()) {
            aside(&self.path, name, now)?;
        }
        self.tables_inode.store(0, Ordering::Relaxed);
        write_identity(&self.path, &self.secret, self.begun)
    }

    /// Whether the lock that we hold is the one that another process would ask for.
    fn is_locked(&self) -> bool {
        let held = self.lock.metadata().map(|lock| (lock.dev(), lock.ino()));
        let there = fs::symlink_metadata(self.path.join("lock")).map(|it| (it.dev(), it.ino()));
        matches!((held, there), (Ok(held), Ok(there)) if held == there)
    }

    fn is_ours(&self) -> bool {
        let Ok(Identity::Ours { secret, .. }) = Identity::of(&self.path) else { return false };
        secret.to_bytes() == self.secret.to_bytes()
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
    let mut lock =
        private(path, OpenOptions::new().read(true).write(true).create(true).truncate(false))
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
    /// `checked` is whether its checksum has told so.
    Ours {
        secret: Secret,
        begun: Time,
        checked: bool,
    },
    Newer {
        version: u32,
    },
    Damaged,
    Missing,
}

impl Identity {
    fn of(folder: &Path) -> Result<Self, Refused> {
        let path = folder.join("identity");
        let read = private(&path, OpenOptions::new().read(true)).and_then(|file| {
            let mut text = Vec::new();
            let written = file.metadata()?.mtime();
            file.take(LONGEST_IDENTITY).read_to_end(&mut text)?;
            Ok((text, written))
        });
        match read {
            Ok((text, written)) => {
                let written = Time::from_secs(u64::try_from(written).unwrap_or(0));
                Ok(Self::read(&text, written))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::Missing),
            Err(error) => Err(Refused::Unable("read the file `identity`", error)),
        }
    }

    /// Reads it; `written` is when the file was.
    fn read(text: &[u8], written: Time) -> Self {
        let parse = || {
            let text = str::from_utf8(text).ok()?;
            let mut lines = text.lines();
            let version: u32 = lines.next()?.strip_prefix("postpone state ")?.parse().ok()?;
            if version > VERSION {
                return Some(Self::Newer { version });
            }
            let digits = lines.next()?.strip_prefix("secret ").filter(|d| d.len() == 32)?;
            let secret = u128::from_str_radix(digits, 16).ok()?;
            let begun = match lines.next() {
                Some(line) => line.strip_prefix("begun ").and_then(|time| time.parse().ok()),
                None => None,
            };
            let begun = begun.unwrap_or(written);
            let checked = match lines.next() {
                Some(line) => {
                    let sum = u64::from_str_radix(line.strip_prefix("check ")?, 16).ok()?;
                    let before = &text[..text.find("check ")?];
                    (sum == xxh3_64(before.as_bytes())).then_some(true)?
                }
                None => false,
            };
            let secret = Secret::new(secret.to_be_bytes());
            lines.next().is_none().then_some(Self::Ours { secret, begun, checked })
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

fn write_identity(folder: &Path, secret: &Secret, begun: Time) -> io::Result<()> {
    let digits = hex(&secret.to_bytes());
    let text = format!("postpone state {VERSION}\nsecret {digits}\nbegun {begun}\n");
    let sum = xxh3_64(text.as_bytes());
    write_whole(folder, "identity", &format!("{text}check {sum:016x}\n"))
}

/// Written beside its place and then moved there, so that it is there whole or not at all.
fn write_whole(folder: &Path, name: &str, text: &str) -> io::Result<()> {
    let beside = folder.join(format!("{name}.new"));
    // One that was left, or put there, is not written to.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = private(&beside, OpenOptions::new().write(true).create_new(true))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, folder.join(name))?;
    File::open(folder)?.sync_all()
}

/// The file that says when we last ran.
const LAST_RUN: &str = "last-run";

/// Ten times what it takes.
const LONGEST_IDENTITY: u64 = 2_000;

/// Opens a file of ours: never by a link, never anything but a regular file (a FIFO would keep us
/// waiting), and open to its owner alone if it is made.
fn private(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    let file = options.custom_flags(flags).mode(0o600).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok(file)
}

/// Takes from others the right to write in a folder; says whether they had it.
fn close_to_others(path: &Path) -> io::Result<bool> {
    let mode = fs::metadata(path)?.permissions().mode();
    let was_open = mode & (Mode::WGRP | Mode::WOTH).bits() != 0;
    if was_open {
        fs::set_permissions(path, Permissions::from_mode(0o700))?;
    }
    Ok(was_open)
}

fn inode(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|found| found.ino())
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
