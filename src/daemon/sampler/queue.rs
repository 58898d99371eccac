//! How many messages wait in the MTA's queue, counted without a process, and at a bounded price.
//!
//! A queue of a million files must not make the counting a load of its own. So a folder is read for
//! its names and kinds alone, a count ends where there is no use in a higher one, and one step looks
//! at no more than [`STEP`] names: the next step goes on where it stopped. Until the end is reached,
//! the last whole count stands, unless the new one is above it already.

use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, RawDir, openat};
use rustix::io::Errno;

/// Names that one step looks at, and up to a buffer more: some 20 ms of one core where the folder is
/// in memory.
const STEP: u64 = 50_000;

/// Folders in one queue. Postfix has 16 below `deferred`, or 16 times 16 (`hash_queue_depth`);
/// deeper ones would cost more to open than their files to count.
const MOST_FOLDERS: u32 = 1_000;

/// Bytes that the kernel fills with names at once: between 100 and 300 of them.
const BUFFER: usize = 8 * 1024;

/// What one step has found, and what it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Work {
    /// Messages, as far as is known by now.
    pub(super) files: u64,
    /// Names that were looked at in this step: what a test holds the bound by.
    pub(super) entries: u64,
}

/// Counts one queue, step by step.
pub(super) struct Counter {
    root: PathBuf,
    form: Form,
    enough: u64,
    /// The last count that reached the end.
    whole: u64,
    walk: Option<Walk>,
}

/// How a queue is laid out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// One file a message, in the folder itself or in folders of one letter below it (queue
    /// directories that `hash_queue_names` lists).
    Postfix,
    /// A control file `qf*` for each message, in the folder itself, in folders of queue groups
    /// below it, or in `qf` in each of these.
    Sendmail,
}

impl Counter {
    /// Postfix's queue of this name below `root`; without a name, a queue of Sendmail at `root`.
    /// There is no use in counting further than `enough`.
    pub(super) fn new(root: PathBuf, name: Option<&str>, enough: u64) -> Self {
        let (root, form) = match name {
            Some(name) => (root.join(name), Form::Postfix),
            None => (root, Form::Sendmail),
        };
        Self { root, form, enough, whole: 0, walk: None }
    }

    /// One step. May block as the disk does.
    ///
    /// # Errors
    ///
    /// A folder that cannot be read, or too many of them; the next step begins anew.
    pub(super) fn count(&mut self) -> Result<Work, String> {
        let taken = self.walk.take().map_or_else(|| Walk::begin(&self.root), Ok);
        let walked = taken.and_then(|mut walk| {
            let done = walk.step(self.form, self.enough)?;
            Ok((walk, done))
        });
        let (walk, done) = walked.map_err(|trouble| self.explained(&trouble))?;
        let (files, entries) = (walk.files, walk.entries);
        if done {
            self.whole = files;
        } else {
            self.walk = Some(Walk { entries: 0, ..walk });
        }
        Ok(Work { files: files.max(self.whole), entries })
    }

    fn explained(&self, trouble: &Trouble) -> String {
        let path = self.root.display();
        match trouble {
            Trouble::Read(error) if error.kind() == io::ErrorKind::PermissionDenied => format!(
                "{path}: closed to this user; `AmbientCapabilities=CAP_DAC_READ_SEARCH` in the \
                 unit would open it"
            ),
            Trouble::Read(error) => format!("{path}: {error}"),
            Trouble::Folders => format!("{path}: more than {MOST_FOLDERS} folders"),
        }
    }
}

enum Trouble {
    Read(io::Error),
    Folders,
}

impl From<Errno> for Trouble {
    fn from(error: Errno) -> Self {
        Self::Read(error.into())
    }
}

/// A count that has begun.
struct Walk {
    /// The folder that is being read.
    now: Option<Folder>,
    /// Folders to be read, and how deep they lie. Bound: [`MOST_FOLDERS`].
    next: Vec<(PathBuf, u8)>,
    folders: u32,
    files: u64,
    entries: u64,
}

struct Folder {
    fd: OwnedFd,
    path: PathBuf,
    depth: u8,
}

/// What a name stands for.
enum Found {
    Message,
    Folder,
    Other,
}

impl Form {
    /// A name and its kind; where the disk does not tell the kind, a name says enough.
    fn sees(self, name: &[u8], kind: FileType, depth: u8) -> Found {
        let may_be = |wanted| kind == wanted || kind == FileType::Unknown;
        match self {
            Self::Postfix if matches!(name, [letter] if *letter != b'.') => {
                if may_be(FileType::Directory) { Found::Folder } else { Found::Other }
            }
            Self::Postfix if may_be(FileType::RegularFile) && !name.starts_with(b".") => {
                Found::Message
            }
            Self::Sendmail if name.starts_with(b"qf") && name.len() > 2 => Found::Message,
            // Data and transcripts lie beside `qf`, and a queue group is one folder deep.
            Self::Sendmail if matches!(name, b"df" | b"xf") || name.starts_with(b".") => {
                Found::Other
            }
            Self::Sendmail if kind == FileType::Directory && depth < 2 => Found::Folder,
            _ => Found::Other,
        }
    }
}

impl Walk {
    fn begin(root: &Path) -> Result<Self, Trouble> {
        let fd = open(root, OFlags::empty())?;
        let now = Some(Folder { fd, path: root.into(), depth: 0 });
        Ok(Self { now, next: Vec::new(), folders: 1, files: 0, entries: 0 })
    }

    /// Goes on for one step; whether the end is reached.
    fn step(&mut self, form: Form, enough: u64) -> Result<bool, Trouble> {
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        while let Some(folder) = self.folder()? {
            let mut names = RawDir::new(&folder.fd, &mut buffer);
            while let Some(entry) = names.next() {
                let entry = match entry {
                    Ok(entry) => entry,
                    // The folder has been removed while it was read.
                    Err(Errno::NOENT) => break,
                    Err(error) => return Err(error.into()),
                };
                let name = entry.file_name().to_bytes();
                self.entries += 1;
                match form.sees(name, entry.file_type(), folder.depth) {
                    Found::Message => self.files += 1,
                    Found::Folder => {
                        let name = OsStr::from_bytes(name);
                        self.next.push((folder.path.join(name), folder.depth + 1));
                        self.folders += 1;
                    }
                    Found::Other => {}
                }
                if self.files >= enough {
                    return Ok(true);
                }
                if self.folders > MOST_FOLDERS {
                    return Err(Trouble::Folders);
                }
                // The names that the kernel has given already would be lost.
                if self.entries >= STEP && names.is_buffer_empty() {
                    self.now = Some(folder);
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// The folder to go on with.
    fn folder(&mut self) -> Result<Option<Folder>, Trouble> {
        if let Some(folder) = self.now.take() {
            return Ok(Some(folder));
        }
        while let Some((path, depth)) = self.next.pop() {
            match open(&path, OFlags::NOFOLLOW) {
                Ok(fd) => return Ok(Some(Folder { fd, path, depth })),
                // Gone meanwhile, or a file of which the disk has not told the kind.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }
}

fn open(path: &Path, more: OFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NONBLOCK | more;
    openat(CWD, path, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::geteuid;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    /// A folder that is gone afterwards; in memory, where there is such a place.
    struct Queue(PathBuf);

    impl Queue {
        fn new(name: &str) -> Self {
            let memory = PathBuf::from("/dev/shm");
            let base = if memory.is_dir() { memory } else { std::env::temp_dir() };
            let path = base.join(format!("postpone-queue-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn files(&self, folder: &str, prefix: &str, count: usize) {
            let folder = self.0.join(folder);
            fs::create_dir_all(&folder).unwrap();
            (0..count).for_each(|n| fs::write(folder.join(format!("{prefix}{n:05}")), "").unwrap());
        }

        fn postfix(&self, name: &'static str, enough: u64) -> Counter {
            Counter::new(self.0.clone(), Some(name), enough)
        }
    }

    impl Drop for Queue {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn files(counter: &mut Counter) -> u64 {
        counter.count().unwrap().files
    }

    #[test]
    fn files_are_counted_in_the_folder_and_in_those_of_one_letter() {
        let queue = Queue::new("postfix");
        queue.files("deferred", "4Z", 3);
        for hashed in ["deferred/A", "deferred/0", "deferred/0/F"] {
            queue.files(hashed, "4Z", 2);
        }
        queue.files("deferred/lost+found", "4Z", 5);
        fs::write(queue.0.join("deferred/.hidden"), "").unwrap();
        let mut counter = queue.postfix("deferred", 1_000);
        assert_eq!(files(&mut counter), 9);
        queue.files("deferred/B", "4Z", 1);
        assert_eq!(files(&mut counter), 10);
        fs::remove_dir_all(queue.0.join("deferred/0")).unwrap();
        assert_eq!(files(&mut counter), 6);
        assert!(queue.postfix("active", 9).count().unwrap_err().contains("active: No such file"));
    }

    #[test]
    fn a_queue_of_sendmail_has_groups_and_folders_of_control_files() {
        let queue = Queue::new("sendmail");
        for (folder, prefix, count) in [
            ("", "qf", 2),
            ("", "df", 4),
            ("qd1", "qf", 3),
            ("qd1", "xf", 3),
            ("qd2/qf", "qf", 4),
            ("qd2/df", "df", 9),
            ("qd2/df", "qf", 9),
        ] {
            queue.files(folder, prefix, count);
        }
        assert_eq!(files(&mut Counter::new(queue.0.clone(), None, 1_000)), 9);
    }

    /// A large queue costs no more than what is asked of it.
    #[test]
    fn no_more_names_are_looked_at_than_are_enough() {
        let queue = Queue::new("enough");
        queue.files("active", "4Z", 50_000);
        let Work { files, entries } = queue.postfix("active", 1_000).count().unwrap();
        assert_eq!(files, 1_000);
        assert!((1_000..=1_002).contains(&entries), "looked at {entries}"); // `.` and `..`
        let Work { files, entries } = queue.postfix("active", 1_000_000).count().unwrap();
        assert!((STEP..=STEP + BUFFER as u64 / 24).contains(&entries), "looked at {entries}");
        assert!(files >= STEP - 2);
    }

    #[test]
    fn a_step_goes_on_where_the_last_one_stopped_and_a_whole_count_stands_until_the_next() {
        let queue = Queue::new("steps");
        queue.files("active", "4Z", 60_000);
        let mut counter = queue.postfix("active", 1_000_000);
        let first = files(&mut counter);
        assert!((49_000..60_000).contains(&first), "{first}");
        assert_eq!(files(&mut counter), 60_000, "the rest");
        assert_eq!(files(&mut counter), 60_000, "a step of the next count");
        fs::remove_dir_all(queue.0.join("active")).unwrap();
        queue.files("active", "4Z", 5);
        // The folder that was open is empty by now, so the count begun ends low; the next is true.
        let _ = files(&mut counter);
        assert_eq!(files(&mut counter), 5);
    }

    #[test]
    fn folders_without_end_are_not_followed() {
        let queue = Queue::new("folders");
        let letters = || (b'A'..=b'Z').chain(b'a'..=b'z').map(char::from);
        for (one, two) in letters().flat_map(|one| letters().map(move |two| (one, two))) {
            fs::create_dir_all(queue.0.join(format!("deferred/{one}/{two}"))).unwrap();
        }
        let why = queue.postfix("deferred", 9).count().unwrap_err();
        assert!(why.ends_with("more than 1000 folders"), "{why}");
    }

    /// As root there is no closed folder: `tests/daemon_load.rs` tells the same of another user.
    #[test]
    fn a_closed_folder_is_named_with_what_would_open_it() {
        let queue = Queue::new("closed");
        queue.files("active", "4Z", 1);
        fs::set_permissions(queue.0.join("active"), fs::Permissions::from_mode(0o000)).unwrap();
        let counted = queue.postfix("active", 9).count();
        match geteuid().is_root() {
            true => assert_eq!(counted.map(|work| work.files), Ok(1)),
            false => assert!(counted.unwrap_err().contains("CAP_DAC_READ_SEARCH")),
        }
    }
}
