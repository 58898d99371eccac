//! Tables on a local disk, kept by fjall: a log-structured tree for each table, one journal for all.
//!
//! A commit is appended to the journal and synced, so it costs its own size and not that of the
//! table. A thread of fjall's sorts what was written into tables later.
//!
//! Who commits waits for the disk. So does [`Backend::compact`]; a scan waits at most while fjall
//! renames a table's list of files. [`Backend::bytes`] never waits.
//!
//! fjall does not expect a damaged file. So `examine` looks at the files first, and `caught`
//! stands around every call.

mod examine;
mod journal;

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use fjall::compaction::Leveled;
use fjall::config::{
    BlockSizePolicy, FilterPolicy, PartitioningPolicy, PinningPolicy, RestartIntervalPolicy,
};
use fjall::{
    AbstractTree, Database, Error, Guard, Keyspace, KeyspaceCreateOptions, LsmError,
    OwnedWriteBatch, PersistMode,
};

use self::examine::examine;
use self::journal::{Lost, journals, mend};
use super::{Backend, Change, Damage, Fault, RawKey};

// Memory, all tables together: CACHE_BYTES, WAIT_BYTES and once more a commit's own size, a table's
// index in parts of 4 kB through the cache, buffers of 32 kB for each file being merged. Measured
// with ten million entries: 5 to 20 MB after opening, 34 MB under 10,000 changes a second, 44 MB under as
// many as it takes.

/// Blocks kept in memory, bytes. Tables are read from end to end, so a cache saves nothing.
const CACHE_BYTES: u64 = 2 << 20;
/// What is written and not yet sorted into tables, over all tables, bytes: above the first the
/// largest part is handed to the sorting thread; above the second a commit waits for it.
const SORT_BYTES: u64 = 10 << 20;
const WAIT_BYTES: u64 = 20 << 20;
/// Journal files, bytes on disk: one is closed at 64 MB, and removed when its last entry is sorted.
const JOURNAL_BYTES: u64 = 64 << 20;
/// Files held open. fjall takes no less than 10.
const OPEN_FILES: usize = 64;
/// One sorts and merges, in turn. With a second the first spins while the second merges.
const THREADS: usize = 1;
/// The unit of reading, and what is lost with one flipped bit: some 300 entries.
const BLOCK_BYTES: u32 = 8 << 10;
/// Entries between two keys that are written in full.
const RESTART: u8 = 16;
/// Bytes of a table's file.
const FILE_BYTES: u64 = 64 << 20;
/// Sorted parts that gather before they are merged into what is there. The product with
/// [`FILE_BYTES`] is what a level holds before there is another above it: with both this large, ten
/// million entries are one level, rewritten every two or three minutes at 10,000 changes a second.
const PARTS: u8 = 16;
/// How often one looks whether there is room again; after five minutes one gives up.
const LOOK: Duration = Duration::from_millis(10);
const LOOKS: u32 = 30_000;
/// How closely the end of a damaged part is searched for: a tenth of the distance of two keys when
/// there are a hundred million.
const NEAR: u128 = 1 << 98;

/// A database in a folder of its own.
pub struct Disk {
    tables: Vec<(&'static str, Keyspace)>,
    db: Database,
    folder: PathBuf,
    bytes: AtomicU64,
    /// What had to be taken out of its journals when it was opened.
    lost: Lost,
}

impl Disk {
    /// Opens what is in the folder, or begins it. Tables that are not named stay as they are.
    pub fn open(folder: &Path, tables: &[&'static str]) -> Result<Self, Fault> {
        let lost = examine(folder).and_then(|()| mend(folder)).map_err(io_fault)?;
        let disk = caught(|| {
            let db = Database::builder(folder)
                .cache_size(CACHE_BYTES)
                .max_cached_files(Some(OPEN_FILES))
                .max_journaling_size(JOURNAL_BYTES)
                .manual_journal_persist(true)
                .worker_threads(THREADS)
                .open()?;
            let tables = tables
                .iter()
                .map(|name| Ok((*name, db.keyspace(name, options)?)))
                .collect::<Result<_, Error>>()?;
            Ok(Self { tables, db, folder: folder.to_owned(), bytes: AtomicU64::new(0), lost })
        })?;
        disk.weigh();
        Ok(disk)
    }

    fn table(&self, name: &str) -> Result<&Keyspace, Fault> {
        let known = self.tables.iter().find(|(known, _)| *known == name);
        known.map(|(_, table)| table).ok_or_else(|| {
            Fault::Unable(io::Error::new(ErrorKind::InvalidInput, format!("no table {name}")))
        })
    }

    /// Holds what is written and not yet sorted to its bound.
    fn make_room(&self) -> Result<(), Error> {
        for _ in 0..LOOKS {
            let unsorted = self.db.write_buffer_size();
            let busy = self.tables.iter().any(|(_, table)| table.sealed_memtable_count() > 0);
            if unsorted > SORT_BYTES && !busy {
                let size = |table: &Keyspace| table.tree.active_memtable().size();
                if let Some((_, largest)) = self.tables.iter().max_by_key(|(_, t)| size(t)) {
                    hand_over(largest)?;
                }
            }
            if unsorted <= WAIT_BYTES {
                return Ok(());
            }
            self.pause()?;
        }
        Err(Error::Io(ErrorKind::TimedOut.into()))
    }

    /// A moment, unless the sorting thread has ended: fjall tells neither when it has done its
    /// work nor when it has failed, save by refusing to write.
    fn pause(&self) -> Result<(), Error> {
        self.db.persist(PersistMode::Buffer)?;
        thread::park_timeout(LOOK);
        Ok(())
    }

    /// Why fjall refuses to write. It keeps no reason when its thread has failed, so look for one:
    /// no room for what would be sorted next, or a table that cannot be read.
    fn diagnose(&self, fault: Fault) -> Fault {
        if !matches!(&fault, Fault::Unable(error) if error.kind() == ErrorKind::Other) {
            return fault;
        }
        let room = rustix::fs::statvfs(&self.folder);
        if room.is_ok_and(|fs| fs.f_bavail.saturating_mul(fs.f_frsize) < WAIT_BYTES) {
            return Fault::Unable(ErrorKind::StorageFull.into());
        }
        let scans = self.tables.iter().flat_map(|(name, _)| (0..=u8::MAX).map(move |b| (name, b)));
        let damaged = scans
            .filter_map(|(name, byte)| self.scan(name, byte, &mut |_, _| {}).err())
            .find(|fault| matches!(fault, Fault::Damaged(_)));
        damaged.unwrap_or(fault)
    }

    fn weigh(&self) {
        let tables: u64 = self.tables.iter().map(|(_, table)| table.disk_space()).sum();
        let journals = journals(&self.folder).unwrap_or_default();
        // A journal's file is made with its full length at once; its blocks tell what it takes.
        let blocks: u64 = journals.iter().flat_map(fs::metadata).map(|file| file.blocks()).sum();
        self.bytes.store(tables + blocks * 512, Ordering::Relaxed);
    }
}

impl Backend for Disk {
    fn commit(&self, batch: &[Change]) -> Result<(), Fault> {
        let mut writes = OwnedWriteBatch::with_capacity(self.db.clone(), batch.len())
            .durability(Some(PersistMode::SyncData));
        for Change { table, key, value } in batch {
            let table = self.table(table)?;
            match value {
                Some(value) => writes.insert(table, *key, value.as_slice()),
                None => writes.remove(table, *key),
            }
        }
        let done = caught(|| self.make_room().and_then(|()| writes.commit()));
        self.weigh();
        done.map_err(|fault| self.diagnose(fault))
    }

    fn scan(
        &self,
        table: &str,
        first_byte: u8,
        each: &mut dyn FnMut(RawKey, &[u8]),
    ) -> Result<(), Fault> {
        let table = self.table(table)?;
        let first = u128::from(first_byte) << 120;
        let last = first | (u128::MAX >> 8);
        let mut from = Some(first);
        let (mut first_fault, mut not_shown) = (None, 0_u128);
        while let Some(begin) = from.take() {
            if let Err((fault, at)) = show(table, begin, last, each) {
                first_fault.get_or_insert(fault);
                from = behind(table, at, last);
                not_shown += from.unwrap_or(last) - at.min(last);
            }
        }
        match first_fault {
            None => Ok(()),
            Some(Fault::Damaged(Damage { what, .. })) => {
                let share = not_shown as f64 / (last - first) as f64;
                Err(Fault::Damaged(Damage { what, share }))
            }
            Some(unable) => Err(unable),
        }
    }

    fn get(&self, table: &str, key: RawKey) -> Result<Option<Vec<u8>>, Fault> {
        let table = self.table(table)?;
        caught(|| Ok(table.get(key)?.map(|value| value.to_vec())))
    }

    fn compact(&self) -> Result<(), Fault> {
        for (_, table) in &self.tables {
            let done = caught(|| {
                hand_over(table)?;
                for _ in 0..LOOKS {
                    if table.sealed_memtable_count() == 0 {
                        break;
                    }
                    self.pause()?;
                }
                if table.table_count() > 0 { table.major_compact() } else { Ok(()) }
            });
            self.weigh();
            done.map_err(|fault| self.diagnose(fault))?;
        }
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn left_out(&self) -> Option<String> {
        let Lost { commits, bytes } = self.lost;
        (commits > 0).then(|| {
            format!("{commits} of the last commits, {bytes} bytes: the original is kept as *.jnl.damaged")
        })
    }
}

/// How fjall keeps a table. Written down with the table: a change here concerns new ones only.
fn options() -> KeyspaceCreateOptions {
    let merging = Leveled::default().with_l0_threshold(PARTS).with_table_target_size(FILE_BYTES);
    KeyspaceCreateOptions::default()
        .manual_journal_persist(true)
        // `make_room` decides for all tables together.
        .max_memtable_size(u64::MAX)
        .compaction_strategy(Arc::new(merging))
        .data_block_size_policy(BlockSizePolicy::all(BLOCK_BYTES))
        .data_block_restart_interval_policy(RestartIntervalPolicy::all(RESTART))
        // Keys are random: they neither compress nor are looked up in advance.
        .filter_policy(FilterPolicy::disabled())
        .filter_block_pinning_policy(PinningPolicy::disabled())
        .filter_block_partitioning_policy(PartitioningPolicy::all(false))
        // Of the index only its first level stays in memory, about 40 bytes for 800 kB of a table.
        .index_block_partitioning_policy(PartitioningPolicy::all(true))
        .index_block_pinning_policy(PinningPolicy::disabled())
}

/// Gives what was written to the sorting thread. fjall knows by the newest entry in a table's files
/// what of the journal is sorted already; were that a removal, merging would drop it, and opening
/// would take the whole journal into memory. So the newest is an entry that stays, under a key that
/// is shorter than any and before all.
fn hand_over(table: &Keyspace) -> Result<(), Error> {
    table.insert([0], [])?;
    table.rotate_memtable().map(|_| ())
}

/// Shows the entries from one key to another. With the fault comes the first key not shown.
fn show(
    table: &Keyspace,
    from: u128,
    last: u128,
    each: &mut dyn FnMut(RawKey, &[u8]),
) -> Result<(), (Fault, u128)> {
    let mut at = from;
    let range = from.to_be_bytes()..=last.to_be_bytes();
    let mut entries = caught(|| Ok(table.range(range))).map_err(|fault| (fault, at))?;
    // What `each` does is its owner's affair, so only the step to the next entry is caught.
    while let Some((key, value)) =
        caught(|| entries.next().map(Guard::into_inner).transpose()).map_err(|f| (f, at))?
    {
        // `commit` writes no other length.
        let Ok(key) = RawKey::try_from(&*key) else { continue };
        each(key, &value);
        at = u128::from_be_bytes(key).saturating_add(1);
    }
    Ok(())
}

/// The first key behind a damaged part that can be read again, searched in growing steps and then
/// between the last two. What is damaged is at most doubled by that.
fn behind(table: &Keyspace, damaged: u128, last: u128) -> Option<u128> {
    let legible = |key: u128| {
        let read = || table.range(key.to_be_bytes()..=last.to_be_bytes()).next().map(Guard::key);
        caught(|| read().transpose()).is_ok()
    };
    let (mut bad, mut step) = (damaged, NEAR);
    let mut good = loop {
        if bad >= last {
            return None;
        }
        let next = bad.saturating_add(step).min(last);
        if legible(next) {
            break next;
        }
        (bad, step) = (next, step.saturating_mul(2));
    };
    while good - bad > NEAR {
        let middle = bad + (good - bad) / 2;
        if legible(middle) { good = middle } else { bad = middle }
    }
    Some(good)
}

/// What fjall answers, or what it panics with, as a fault.
fn caught<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Fault> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(Error::Io(error) | Error::Storage(LsmError::Io(error)))) => Err(io_fault(error)),
        Ok(Err(Error::Locked)) => Err(Fault::Unable(ErrorKind::ResourceBusy.into())),
        Ok(Err(Error::Poisoned)) => Err(Fault::Unable(io::Error::other("an earlier write failed"))),
        Ok(Err(error)) => Err(Fault::Damaged(error.to_string().into())),
        Err(_) => Err(Fault::Damaged("fjall panicked".into())),
    }
}

/// A file that is missing, too short or of another kind is damage; all else may pass.
fn io_fault(error: io::Error) -> Fault {
    match error.kind() {
        ErrorKind::NotFound
        | ErrorKind::AlreadyExists
        | ErrorKind::UnexpectedEof
        | ErrorKind::InvalidData
        | ErrorKind::InvalidInput
        | ErrorKind::IsADirectory => Fault::Damaged(error.to_string().into()),
        _ => Fault::Unable(error),
    }
}

#[cfg(test)]
mod tests {
    use std::process;

    use xxhash_rust::xxh3::xxh3_128;

    use super::*;

    const TABLE: &str = "passed";

    /// A folder that goes with the test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("postpone-disk-{}-{name}", process::id()));
            let _ = fs::remove_dir_all(&path);
            Self(path)
        }

        fn open(&self) -> Result<Disk, Fault> {
            Disk::open(&self.0, &[TABLE, "pending"])
        }

        /// The largest file in this part of the folder.
        fn largest(&self, part: &str) -> PathBuf {
            let files = fs::read_dir(self.0.join(part)).unwrap().map(|f| f.unwrap().path());
            files.filter(|f| f.is_file()).max_by_key(|f| f.metadata().unwrap().len()).unwrap()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Evenly spread, as keys are.
    fn key(n: u64) -> RawKey {
        xxh3_128(&n.to_be_bytes()).to_be_bytes()
    }

    fn put(n: u64) -> Change {
        Change { table: TABLE, key: key(n), value: Some(n.to_be_bytes().to_vec()) }
    }

    fn remove(n: u64) -> Change {
        Change { table: TABLE, key: key(n), value: None }
    }

    /// How many entries are read, and what is wrong. What is read is what was written.
    fn read(disk: &Disk) -> (u64, Option<Fault>) {
        let (mut count, mut fault) = (0, None);
        for byte in 0..=u8::MAX {
            let scanned = disk.scan(TABLE, byte, &mut |k, value| {
                assert_eq!(k, key(u64::from_be_bytes(value.try_into().unwrap())));
                count += 1;
            });
            fault = match (fault, scanned.err()) {
                (Some(Fault::Damaged(mut all)), Some(Fault::Damaged(one))) => {
                    all.share += one.share;
                    Some(Fault::Damaged(all))
                }
                (fault, scanned) => fault.or(scanned),
            };
        }
        (count, fault)
    }

    fn change(file: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(file).unwrap();
        change(&mut bytes);
        fs::write(file, bytes).unwrap();
    }

    fn filled(folder: &Folder, entries: u64) {
        let disk = folder.open().unwrap();
        disk.commit(&(0..entries).map(put).collect::<Vec<_>>()).unwrap();
        disk.compact().unwrap();
    }

    #[test]
    fn what_was_written_is_read_after_opening_again() {
        let folder = Folder::new("again");
        let disk = folder.open().unwrap();
        disk.commit(&[put(1), put(2), put(3)]).unwrap();
        disk.commit(&[remove(2), put(4)]).unwrap();
        drop(disk);
        let disk = folder.open().unwrap();
        assert_eq!(disk.get(TABLE, key(1)).unwrap(), Some(1u64.to_be_bytes().to_vec()));
        assert_eq!(disk.get(TABLE, key(2)).unwrap(), None);
        assert_eq!(disk.get("pending", key(1)).unwrap(), None);
        assert!(matches!(read(&disk), (3, None)));
    }

    #[test]
    fn the_last_change_of_a_key_in_a_batch_counts() {
        let folder = Folder::new("last");
        let disk = folder.open().unwrap();
        disk.commit(&[put(1), remove(1), remove(2), put(2)]).unwrap();
        assert!(matches!(read(&disk), (1, None)));
        drop(disk);
        assert!(matches!(read(&folder.open().unwrap()), (1, None)));
    }

    #[test]
    fn a_table_that_is_not_named_stays() {
        let folder = Folder::new("unnamed");
        folder.open().unwrap().commit(&[put(1)]).unwrap();
        drop(Disk::open(&folder.0, &["other"]).unwrap());
        assert!(matches!(read(&folder.open().unwrap()), (1, None)));
    }

    #[test]
    fn a_folder_belongs_to_one() {
        let folder = Folder::new("one");
        let _disk = folder.open().unwrap();
        assert!(matches!(folder.open().err(), Some(Fault::Unable(_))));
    }

    #[test]
    fn a_batch_torn_at_the_end_of_the_journal_never_was() {
        let folder = Folder::new("torn");
        let disk = folder.open().unwrap();
        disk.commit(&(0..100).map(put).collect::<Vec<_>>()).unwrap();
        let end = fs::read(folder.0.join("0.jnl")).unwrap();
        let end = end.iter().rposition(|byte| *byte != 0).unwrap();
        disk.commit(&(100..200).map(put).collect::<Vec<_>>()).unwrap();
        drop(disk);
        for cut in [1, 20, 2000] {
            change(&folder.0.join("0.jnl"), |bytes| bytes.truncate(end + cut));
            assert!(matches!(read(&folder.open().unwrap()), (100, None)));
        }
    }

    #[test]
    fn a_hole_in_the_journal_is_told() {
        let folder = Folder::new("hole");
        let disk = folder.open().unwrap();
        for n in 0..10 {
            disk.commit(&(n * 100..n * 100 + 100).map(put).collect::<Vec<_>>()).unwrap();
        }
        drop(disk);
        change(&folder.0.join("0.jnl"), |bytes| bytes[30_000..31_000].fill(0));
        let disk = folder.open().unwrap();
        let (count, fault) = read(&disk);
        assert!((700..1_000).contains(&count), "what lies behind the hole is kept too: {count}");
        assert!(fault.is_none(), "the rest is whole");
        assert!(disk.left_out().unwrap().contains(" of the last commits, "));
        drop(disk);
        assert_eq!(folder.open().unwrap().left_out(), None, "it is told once");
        assert!(folder.0.join("0.jnl.damaged").exists());
    }

    #[test]
    fn a_flipped_bit_anywhere_in_the_journal_costs_one_commit_and_is_told() {
        const COMMITS: u64 = 20;
        let folder = Folder::new("flip");
        let disk = folder.open().unwrap();
        for n in 0..COMMITS {
            disk.commit(&(n * 100..n * 100 + 100).map(put).collect::<Vec<_>>()).unwrap();
        }
        drop(disk);
        let journal = folder.0.join("0.jnl");
        let written = fs::read(&journal).unwrap();
        let end = written.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        // Every place of one commit's head, first entry, and tail, and some all over.
        let commit = end / COMMITS as usize;
        let dense = (0..36).step_by(3).chain(commit - 16..commit + 14).chain(end - 6..end);
        let places = dense.map(|p| (p, p % 8)).chain((0..24).map(|n| (n * end / 24, n % 8)));
        for (place, bit) in places {
            fs::write(&journal, &written).unwrap();
            change(&journal, |bytes| bytes[place] ^= 1 << bit);
            let disk = folder.open().unwrap_or_else(|fault| panic!("byte {place}: {fault}"));
            let (count, fault) = read(&disk);
            assert!(fault.is_none(), "byte {place}: {fault:?}");
            assert!(count >= (COMMITS - 1) * 100, "byte {place}, bit {bit}: {count}");
            assert_eq!(disk.left_out().is_none(), count == COMMITS * 100, "byte {place}: {count}");
        }
    }

    #[test]
    fn a_flipped_bit_costs_one_block() {
        let folder = Folder::new("bit");
        filled(&folder, 50_000);
        change(&folder.largest("keyspaces/1/tables"), |bytes| bytes[700_000] ^= 1);
        let (count, fault) = read(&folder.open().unwrap());
        assert!((49_600..50_000).contains(&count), "{count}");
        let Some(Fault::Damaged(damage)) = fault else { panic!("{fault:?}") };
        let lost = damage.share * 50_000.0 / 256.0;
        assert!((0.5..2.0).contains(&(lost / (50_000 - count) as f64)), "{lost} of {count}");
    }

    #[test]
    fn zeros_in_a_table_cost_what_they_cover() {
        let folder = Folder::new("zeros");
        filled(&folder, 50_000);
        change(&folder.largest("keyspaces/1/tables"), |b| b[700_000..900_000].fill(0));
        let (count, fault) = read(&folder.open().unwrap());
        assert!((42_000..45_000).contains(&count), "{count}");
        assert!(matches!(fault, Some(Fault::Damaged(_))));
    }

    #[test]
    fn what_cannot_be_opened_is_a_fault() {
        let folder = Folder::new("fault");
        for (name, part, harm) in [
            ("the list of files is garbage", "keyspaces/1", b"garbage".as_slice()),
            ("a table is empty", "keyspaces/1/tables", b""),
        ] {
            let _ = fs::remove_dir_all(&folder.0);
            filled(&folder, 10_000);
            change(&folder.largest(part), |bytes| *bytes = harm.to_vec());
            assert!(matches!(folder.open().err(), Some(Fault::Damaged(_))), "{name}");
        }
    }

    #[test]
    fn what_fjall_would_remove_is_kept() {
        let folder = Folder::new("kept");
        filled(&folder, 10_000);
        let (current, aside) = (folder.0.join("keyspaces/0/current"), folder.0.join("aside"));
        fs::rename(&current, &aside).unwrap();
        assert!(matches!(folder.open().err(), Some(Fault::Damaged(_))));
        fs::rename(&aside, &current).unwrap();
        let stray = folder.0.join("keyspaces/stray");
        fs::create_dir(&stray).unwrap();
        assert!(matches!(folder.open().err(), Some(Fault::Damaged(_))));
        fs::remove_dir(&stray).unwrap();
        assert!(matches!(read(&folder.open().unwrap()), (10_000, None)));
    }

    #[test]
    fn compaction_gives_back_what_was_removed() {
        let folder = Folder::new("compact");
        filled(&folder, 100_000);
        let disk = folder.open().unwrap();
        let before = disk.tables[0].1.disk_space();
        disk.commit(&(0..99_000).map(remove).collect::<Vec<_>>()).unwrap();
        disk.compact().unwrap();
        let after = disk.tables[0].1.disk_space();
        assert!(after * 50 < before, "{before} {after}");
        assert!(matches!(read(&disk), (1_000, None)));
        drop(disk);
        let disk = folder.open().unwrap();
        assert_eq!(disk.db.write_buffer_size(), 0, "nothing is taken from the journal again");
        assert!(matches!(read(&disk), (1_000, None)));
    }
}
