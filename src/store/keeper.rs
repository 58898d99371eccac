//! Writing behind, and reading again at the start.
//!
//! One thread owns the backend. At the start it reads everything back, the most telling tables
//! first, while mail is served; what changes meanwhile is joined with what was known before it is
//! written. From then on it writes what has changed, once a `flush`. When it is told to stop it
//! writes the rest, and those tables that are only kept for a restart.
//!
//! Nothing here makes the mail path wait: a backend that is slow, full or broken makes changes
//! pile up in [`Changes`](crate::meter::changes::Changes), and that is all.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tracing::{error, info, warn};

use super::{Backend, Change, Damage, Fault, Home, RawKey};
use crate::clock::{Pulse, Time};
use crate::engine::Engine;
use crate::meter::key::Key;
use crate::meter::table::{Kept, Restored};
use crate::telemetry::Failure;

/// Entries of one commit: enough to be worth its wait for the disk, few enough to be held twice.
const BATCH: usize = 16_384;

/// Threads that read at the start. There is no use for more than the disk and the tables bear.
const READERS: usize = 2;

/// After so many flushes a backend that could not be used is tried once more; twice as many after
/// each time that fails, up to the most.
const FIRST_RETRY: u32 = 2;
const LAST_RETRY: u32 = 64;

/// How many flushes pass between two looks at the space that is taken.
const LOOK_AT_SPACE: u32 = 60;

/// How often the folder is looked at: whether it is still the one that is used.
const LOOK_AT_PLACE: Duration = Duration::from_secs(5);

/// How often it is written down that we run: often, beside how long we may be away.
const NOTE_RUN: Duration = Duration::from_secs(600);

/// Bytes on disk for one entry, and for all that is not entries, beyond which space is given back:
/// some three times what they take when nothing is wasted.
const BYTES_AN_ENTRY: u64 = 128;
const BYTES_BESIDES: u64 = 128 << 20;

/// How long the disk may take for one step of reading at the start: a slice of a table at most.
const LONGEST_SILENCE: Duration = Duration::from_secs(30);

/// What the thread is told.
enum Message {
    /// Write the rest and end.
    Stop,
    /// A reader has nothing more to read.
    ReaderEnded,
}

/// The thread that keeps memory on disk.
pub struct Keeper {
    messages: Sender<Message>,
    thread: JoinHandle<Result<(), Fault>>,
    pulse: Arc<Pulse>,
    engine: Arc<Engine>,
}

impl Keeper {
    /// Begins to read what was kept, and to write what changes. Until a table has been read,
    /// [`Kept::set_whole`] says so.
    pub fn start(home: Box<dyn Home>, engine: Arc<Engine>, flush: Duration) -> io::Result<Self> {
        let tables: Vec<_> = engine.memory().kept().collect();
        engine.awaits_what_was_kept();
        for (_, table) in &tables {
            table.changes().inspect(|changes| changes.begin());
            table.forgotten().begin();
        }
        engine.telemetry().state_written(0, engine.now());
        let (sender, messages) = mpsc::channel();
        let (pulse, keepers) = (Arc::new(Pulse::start()), engine.clone());
        let writer = Writer {
            home,
            books: Books { engine, tables, writing: Mutex::new(()), pulse: pulse.clone() },
            flush,
            sender: sender.clone(),
            messages,
            known: Known::Unread,
            noted_run: Time::default(),
            restored: 0,
            unreadable: 0,
            compactor: None,
        };
        let thread = thread::Builder::new().name("state".into()).spawn(move || writer.run())?;
        Ok(Self { messages: sender, thread, pulse, engine: keepers })
    }

    /// Tells it to write the rest and end.
    pub fn stop(&self) {
        // It has ended already if nobody listens.
        let _ = self.messages.send(Message::Stop);
    }

    /// Looks whether reading at the start goes on. Nothing waits any longer for a disk that has not
    /// answered for a while: what was kept counts as not known. Should it answer later, reading goes
    /// on.
    pub fn tend(&self) {
        if self.engine.telemetry().totals().loading && self.pulse.silent() >= LONGEST_SILENCE {
            let seconds = LONGEST_SILENCE.as_secs();
            let detail =
                format_args!("state is not read: the disk has not answered for {seconds} s");
            self.engine.failed(Failure::State, &detail);
            self.engine.awaits_nothing();
        }
    }

    /// Beats whenever the disk has taken or given something, so that a slow one can be told from one
    /// that hangs.
    pub fn pulse(&self) -> Arc<Pulse> {
        self.pulse.clone()
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for its end; says why not everything was written, if so.
    pub fn finish(self) -> Result<(), Fault> {
        self.stop();
        let panicked = |_| Err(Fault::Unable(io::Error::other("the state's thread panicked")));
        self.thread.join().unwrap_or_else(panicked)
    }
}

/// How much of what was kept is known again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    /// It has not been read, or not to its end.
    Unread,
    /// All of it.
    Whole,
    /// All that could be read; the rest was set aside. What is known is to be written anew.
    Salvaged,
}

struct Writer {
    home: Box<dyn Home>,
    books: Books,
    flush: Duration,
    sender: Sender<Message>,
    messages: Receiver<Message>,
    known: Known,
    /// When it was last written down that we run.
    noted_run: Time,
    /// Entries that were read back, and those that could not be, as far as that can be told.
    restored: u64,
    unreadable: u64,
    compactor: Option<JoinHandle<()>>,
}

/// What the readers have in common with the writer.
struct Books {
    engine: Arc<Engine>,
    tables: Vec<NamedTable>,
    /// Held while something is committed that was looked up in memory before.
    writing: Mutex<()>,
    pulse: Arc<Pulse>,
}

type Opened = Arc<dyn Backend>;
type NamedTable = (&'static str, Arc<dyn Kept>);

impl Writer {
    fn run(mut self) -> Result<(), Fault> {
        let mut backend = None;
        let (mut next_try, mut pause, mut flushes) = (0, FIRST_RETRY, 0_u32);
        let mut stopping = false;
        // Before anything is read: by a clock that is wrong all of it would have faded.
        self.home.last_ran().inspect(|then| self.books.engine.last_ran(*then));
        let mut looked = self.books.engine.now();
        while !stopping {
            if backend.is_none() && flushes >= next_try {
                match self.open() {
                    Ok(opened) => (backend, pause) = (Some(opened), FIRST_RETRY),
                    Err(fault) => {
                        self.trouble("cannot be opened", &fault);
                        self.books.engine.awaits_nothing();
                        next_try = flushes.saturating_add(pause);
                        pause = (pause * 2).min(LAST_RETRY);
                    }
                }
            }
            if let Some(opened) = &backend
                && let Err(fault) = self.work_or_say(opened, &mut stopping)
            {
                self.trouble("cannot be written", &fault);
                backend = None;
                let salvaging = self.known == Known::Salvaged;
                self.put_right(&fault);
                if self.known == Known::Salvaged && !salvaging {
                    // What could be read is in memory only until it is written anew.
                    continue;
                }
                next_try = flushes.saturating_add(pause);
            }
            stopping = stopping || self.told_to_stop(self.flush);
            flushes = flushes.saturating_add(1);
            if let Some(opened) = &backend
                && flushes.is_multiple_of(LOOK_AT_SPACE)
            {
                self.look_at_space(opened);
            }
            let now = self.books.engine.now();
            // Either way round: the clock may have been put right.
            if backend.is_some() && now.since(looked).max(looked.since(now)) >= LOOK_AT_PLACE {
                looked = now;
                self.keep_its_beginning();
                if !self.home.is_in_place() {
                    (backend, next_try) = (None, flushes);
                    self.move_in();
                } else if !now.is_within(NOTE_RUN, self.noted_run) {
                    self.note_run();
                }
            }
        }
        let saved = caught(|| match backend {
            Some(opened) => self.finish(&opened),
            None => self.open().and_then(|opened| self.finish(&opened)),
        });
        let saved = saved.and_then(|saved| saved);
        if let Err(fault) = &saved {
            self.trouble("cannot be saved", fault);
        }
        saved
    }

    /// Opens the backend; one that is damaged as a whole is set aside, and another begun.
    fn open(&mut self) -> Result<Opened, Fault> {
        if !self.home.is_in_place() {
            self.home.move_in(self.books.engine.now()).map_err(Fault::Unable)?;
        }
        let opened = match self.try_to_open() {
            Err(Fault::Damaged(damage)) => {
                self.set_aside(&damage)?;
                self.try_to_open()
            }
            other => other,
        }?;
        if let Some(what) = opened.left_out() {
            self.books
                .engine
                .failed(Failure::State, &format_args!("state was damaged: lost {what}"));
        }
        Ok(opened)
    }

    fn try_to_open(&self) -> Result<Opened, Fault> {
        let opened = catch_unwind(AssertUnwindSafe(|| self.home.open()));
        self.books.pulse.beat();
        let panicked = |_| Err(Fault::Damaged("reading it panicked".into()));
        opened.unwrap_or_else(panicked).map(Arc::from)
    }

    fn set_aside(&mut self, damage: &Damage) -> Result<(), Fault> {
        let now = self.books.engine.now();
        let aside = self.home.set_aside(now).map_err(Fault::Unable)?;
        let (what, kept, lost_about) = (&damage.what, self.restored, self.unreadable);
        error!(
            aside,
            what,
            kept,
            lost_about,
            "state is damaged and was set aside; what could be read is kept"
        );
        if self.known == Known::Unread && self.restored == 0 {
            error!("no state could be read: behaviour only watches again for `learn_for`");
            self.books.engine.memory().behaviour.begun(now);
            self.home.begins_anew(now).map_err(Fault::Unable)?;
        }
        self.known = Known::Salvaged;
        Ok(())
    }

    /// Writes down when the database was begun, where a clock that was ahead had said so.
    fn keep_its_beginning(&mut self) {
        let Some(begun) = self.books.engine.memory().behaviour.begun_anew() else { return };
        if let Err(error) = self.home.begins_anew(begun) {
            self.trouble("cannot be told when it was begun", &Fault::Unable(error));
        }
    }

    /// Writes down that we run, unless nobody knows when that is.
    fn note_run(&mut self) {
        let at = self.books.engine.moment();
        if at.is_doubted() {
            return;
        }
        self.noted_run = at.now;
        if let Err(error) = self.home.runs(at.now) {
            self.trouble("cannot be told that it is used", &Fault::Unable(error));
        }
    }

    /// The folder was removed or replaced while it was used. It must
    /// not be open.
    fn move_in(&mut self) {
        // It would go on in the old place.
        self.compactor.take().map(JoinHandle::join);
        self.known = Known::Salvaged;
        let engine = &self.books.engine;
        match self.home.move_in(engine.now()) {
            Ok(()) => {
                let what = "its folder was removed or replaced: everything is written again";
                engine.failed(Failure::State, &format_args!("state: {what}"));
            }
            Err(error) => {
                let what = "its folder was removed or replaced, and cannot be written again";
                engine.failed(Failure::State, &format_args!("state: {what}: {error}"));
            }
        }
    }

    /// The same, where a panic of ours is a fault like others: it is said, and all is tried again.
    fn work_or_say(&mut self, backend: &Opened, stopping: &mut bool) -> Result<(), Fault> {
        caught(|| self.work(backend, stopping)).unwrap_or_else(|panicked| {
            for (_, table) in &self.books.tables {
                table.changes().inspect(|changes| changes.lose());
            }
            Err(panicked)
        })
    }

    /// Reads what was not read yet, and writes what has changed.
    fn work(&mut self, backend: &Opened, stopping: &mut bool) -> Result<(), Fault> {
        match self.known {
            Known::Unread => {
                self.read_everything(&**backend, stopping)?;
                if *stopping {
                    // The rest is written at the end.
                    return Ok(());
                }
                self.known = Known::Whole;
            }
            Known::Salvaged => {
                self.books.engine.awaits_nothing();
                self.write_everything(&**backend, |_| true)?;
                self.known = Known::Whole;
            }
            Known::Whole => {}
        }
        self.write_changes(&**backend)?;
        self.write_missed(&**backend)
    }

    /// Writes those tables as a whole in which more has changed than could be noted.
    fn write_missed(&self, backend: &dyn Backend) -> Result<(), Fault> {
        for (number, (name, table)) in self.books.tables.iter().enumerate() {
            if !missed(&**table) {
                continue;
            }
            warn!(table = name, "too many changes to track: the whole table is written");
            let rewritten = self.write_table(backend, number).and_then(|()| {
                // What was not read yet is not known, but not gone.
                if self.known == Known::Unread {
                    return Ok(());
                }
                self.remove_unknown(backend, number)
            });
            if rewritten.is_err() {
                table.changes().inspect(|changes| changes.miss());
            }
            rewritten?;
        }
        Ok(())
    }

    /// Writes what has changed, and what is only kept for a restart.
    fn finish(&mut self, backend: &Opened) -> Result<(), Fault> {
        let begun = self.books.engine.now();
        if self.known == Known::Salvaged {
            self.write_everything(&**backend, |_| true)?;
        }
        self.write_changes(&**backend)?;
        self.write_missed(&**backend)?;
        self.write_everything(&**backend, |table| table.changes().is_none())?;
        self.note_run();
        info!(took = ?self.books.engine.now().since(begun), "state saved");
        Ok(())
    }

    /// What a fault while writing leaves to be done.
    fn put_right(&mut self, fault: &Fault) {
        if let Fault::Damaged(damage) = fault
            && let Err(fault) = self.set_aside(damage)
        {
            self.trouble("cannot be set aside", &fault);
        }
        self.books.engine.awaits_nothing();
    }

    fn trouble(&self, what: &str, fault: &Fault) {
        self.books.engine.failed(Failure::State, &format_args!("state {what}: {fault}"));
    }

    /// Waits for so long, and says whether it is time to stop.
    fn told_to_stop(&self, at_most: Duration) -> bool {
        match self.messages.recv_timeout(at_most) {
            Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => true,
            Ok(Message::ReaderEnded) | Err(RecvTimeoutError::Timeout) => false,
        }
    }

    /// What is to be written of these keys. While not everything has been read back, they are first
    /// joined with what is kept of them.
    fn changes(
        &self,
        backend: &dyn Backend,
        name: &'static str,
        table: &dyn Kept,
        keys: &[Key],
    ) -> Result<Vec<Change>, Fault> {
        let mut changes = Vec::with_capacity(keys.len());
        for key in keys {
            let raw = key.to_bytes();
            // What is gone from memory is gone.
            if self.known == Known::Unread
                && table.written(*key).is_some()
                && let Some(kept) = backend.get(name, raw)?
            {
                table.restore(*key, &kept, self.books.engine.moment());
                self.books.pulse.beat();
            }
            changes.push(Change { table: name, key: raw, value: table.written(*key) });
        }
        Ok(changes)
    }

    /// Writes the newest value of all that was noted. What cannot be written stays noted.
    fn write_changes(&self, backend: &dyn Backend) -> Result<(), Fault> {
        let begun = self.books.engine.now();
        self.write_forgotten(backend)?;
        self.write_changes_of(backend, &self.books.tables)?;
        self.books.engine.telemetry().state_written(backend.bytes(), begun);
        Ok(())
    }

    /// Has the disk forget what was forgotten by hand.
    fn write_forgotten(&self, backend: &dyn Backend) -> Result<(), Fault> {
        for (name, table) in &self.books.tables {
            let keys = table.forgotten().to_write();
            let change = |key: &Key| Change {
                table: name,
                key: key.to_bytes(),
                value: table.written(*key).filter(|_| table.changes().is_some()),
            };
            self.books.commit(backend, &mut keys.iter().map(change).collect())?;
            table.forgotten().written(&keys, self.known != Known::Unread);
        }
        Ok(())
    }

    /// Writes what has changed in the first so many tables.
    ///
    /// The last one is looked at first and written last: what is gone from it may have gone into
    /// one before it, where it was noted by then. A triplet that has passed is on disk as passed
    /// before it is none that waits any more.
    fn write_changes_of(&self, backend: &dyn Backend, tables: &[NamedTable]) -> Result<(), Fault> {
        let Some(((name, table), before)) = tables.split_last() else { return Ok(()) };
        let Some(changes) = table.changes() else { return self.write_changes_of(backend, before) };
        for _ in 0..=changes.len() / BATCH {
            let keys = changes.take(BATCH);
            let written = self.changes(backend, name, &**table, &keys).and_then(|mut batch| {
                self.write_changes_of(backend, before)?;
                self.books.commit(backend, &mut batch)
            });
            if let Err(fault) = written {
                changes.put_back(&keys);
                return Err(fault);
            }
            changes.done(keys.len());
        }
        Ok(())
    }

    fn write_everything(
        &self,
        backend: &dyn Backend,
        which: impl Fn(&dyn Kept) -> bool,
    ) -> Result<(), Fault> {
        for (number, (_, table)) in self.books.tables.iter().enumerate() {
            if which(&**table) {
                self.write_table(backend, number)?;
            }
        }
        Ok(())
    }

    /// Writes all of a table, and what changes meanwhile in between.
    fn write_table(&self, backend: &dyn Backend, number: usize) -> Result<(), Fault> {
        let (name, table) = &self.books.tables[number];
        let before = &self.books.tables[..number];
        let mut batch = Vec::with_capacity(BATCH);
        for part in 0..table.parts() {
            batch.extend(self.changes(backend, name, &**table, &table.keys(part))?);
            if batch.len() >= BATCH {
                self.write_changes_of(backend, before)?;
                self.books.commit(backend, &mut batch)?;
                self.write_changes(backend)?;
            }
        }
        self.write_changes_of(backend, before)?;
        self.books.commit(backend, &mut batch)
    }

    /// Removes what is kept of a table and not in it.
    fn remove_unknown(&self, backend: &dyn Backend, number: usize) -> Result<(), Fault> {
        let (name, table) = &self.books.tables[number];
        for first_byte in 0..=u8::MAX {
            let mut keys = Vec::new();
            backend.scan(name, first_byte, &mut |key, _| keys.push(key))?;
            self.books.pulse.beat();
            keys.retain(|key| table.written(Key::from_bytes(*key)).is_none());
            if !keys.is_empty() {
                self.write_changes_of(backend, &self.books.tables[..number])?;
                self.books.remove_if_unknown(backend, name, &**table, &keys)?;
            }
        }
        Ok(())
    }

    /// Reads all tables back while what changes is written, unless it is told to stop.
    fn read_everything(&mut self, backend: &dyn Backend, stopping: &mut bool) -> Result<(), Fault> {
        let begun = self.books.engine.now();
        self.books.engine.telemetry().state_loading(true);
        let reading = Reading::new(self.books.tables.len());
        let (books, sender) = (&self.books, &self.sender);
        let read = || {
            let slices = AssertUnwindSafe(|| books.read_slices(backend, &reading));
            if catch_unwind(slices).is_err() {
                reading.fault(Fault::Damaged("reading it panicked".into()));
            }
            // Nobody listens any more if it was told to stop.
            let _ = sender.send(Message::ReaderEnded);
        };
        *stopping = thread::scope(|scope| {
            let start = |_: &usize| {
                let thread = thread::Builder::new().name("reader".into()).spawn_scoped(scope, read);
                thread.map_err(|error| reading.fault(Fault::Unable(error))).is_ok()
            };
            let (mut readers, mut told) = ((0..READERS).filter(start).count(), begun);
            while readers > 0 {
                match self.messages.recv_timeout(self.flush) {
                    Ok(Message::ReaderEnded) => readers -= 1,
                    Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => {
                        reading.stop.store(true, Ordering::Relaxed);
                        return true;
                    }
                    Err(RecvTimeoutError::Timeout) => {
                        if let Err(fault) = self.write_changes(backend) {
                            reading.fault(fault);
                        }
                    }
                }
                let entries = reading.entries.load(Ordering::Relaxed);
                self.books.engine.telemetry().state_loaded(entries);
                let now = self.books.engine.now();
                if now.since(told) >= PROGRESS_EVERY {
                    info!(entries, "loading state");
                    told = now;
                }
            }
            false
        });
        let entries = reading.entries.into_inner();
        self.restored += entries;
        self.unreadable += reading.unreadable.into_inner();
        let fault = reading.fault.into_inner().unwrap_or_else(PoisonError::into_inner);
        if !*stopping {
            let took = self.books.engine.now().since(begun);
            info!(entries, ?took, "state loaded");
            self.books.engine.awaits_nothing();
        }
        fault.map_or(Ok(()), Err)
    }

    /// Gives space back if much of it is wasted, on a thread of its own: it takes its time.
    fn look_at_space(&mut self, backend: &Opened) {
        if let Some(ended) = self.compactor.take_if(|thread| thread.is_finished())
            && ended.join().is_err()
        {
            self.trouble("cannot be compacted", &panicked());
        }
        let busy = self.compactor.is_some();
        let entries = self.books.engine.memory().kept_entries() as u64;
        if busy || backend.bytes() < BYTES_BESIDES + entries * BYTES_AN_ENTRY {
            return;
        }
        let (backend, engine) = (backend.clone(), self.books.engine.clone());
        let compact = move || {
            let before = backend.bytes();
            match backend.compact() {
                Ok(()) => info!(before, after = backend.bytes(), "state compacted"),
                Err(fault) => {
                    let detail = format_args!("state cannot be compacted: {fault}");
                    engine.failed(Failure::State, &detail);
                }
            }
        };
        match thread::Builder::new().name("compact".into()).spawn(compact) {
            Ok(thread) => self.compactor = Some(thread),
            Err(error) => self.trouble("cannot be compacted", &Fault::Unable(error)),
        }
    }
}

impl Books {
    fn commit(&self, backend: &dyn Backend, batch: &mut Vec<Change>) -> Result<(), Fault> {
        if batch.is_empty() {
            return Ok(());
        }
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        caught(|| backend.commit(batch))??;
        self.pulse.beat();
        self.engine.telemetry().state_wrote(batch.len());
        batch.clear();
        Ok(())
    }

    fn remove_if_unknown(
        &self,
        backend: &dyn Backend,
        name: &'static str,
        table: &dyn Kept,
        keys: &[RawKey],
    ) -> Result<(), Fault> {
        for keys in keys.chunks(BATCH) {
            // Looked up and removed under one lock: what comes to be known in between is noted,
            // and written after this.
            let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
            let gone = |key: &RawKey| table.written(Key::from_bytes(*key)).is_none();
            let removal = |key: &RawKey| Change { table: name, key: *key, value: None };
            let batch: Vec<_> = keys.iter().filter(|key| gone(key)).map(removal).collect();
            if !batch.is_empty() {
                backend.commit(&batch)?;
                self.pulse.beat();
            }
        }
        Ok(())
    }

    fn read_slices(&self, backend: &dyn Backend, reading: &Reading) {
        while let Some((number, first_byte)) = reading.next() {
            let (name, table) = &self.tables[number];
            let (mut entries, mut dropped) = (0, Vec::new());
            let at = self.engine.moment();
            self.pulse.beat();
            let read = backend.scan(name, first_byte, &mut |key, bytes| match table.restore(
                Key::from_bytes(key),
                bytes,
                at,
            ) {
                Restored::Kept => entries += 1,
                Restored::Dropped => dropped.push(key),
            });
            self.pulse.beat();
            let removed = self.remove_if_unknown(backend, name, &**table, &dropped);
            reading.entries.fetch_add(entries, Ordering::Relaxed);
            if let Err(Fault::Damaged(Damage { share, .. })) = read {
                // As many lay in the part that cannot be read as in any other of its size.
                let unreadable = entries as f64 * share / (1.0 - share).max(0.01);
                reading.unreadable.fetch_add(unreadable.round() as u64, Ordering::Relaxed);
            }
            if let Err(fault) = read.and(removed) {
                reading.fault(fault);
            }
            if reading.slice_ended(number) {
                table.set_whole(true);
            }
        }
    }
}

/// How often a long load is told of.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// What comes of this, or that it has panicked.
fn caught<T>(what: impl FnOnce() -> T) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(what)).map_err(|_| panicked())
}

fn panicked() -> Fault {
    Fault::Unable(io::Error::other("a fault of ours, see the log"))
}

fn missed(table: &dyn Kept) -> bool {
    table.changes().is_some_and(|changes| changes.missed())
}

/// How far reading has come: a slice of a table is what begins with one byte.
struct Reading {
    next: AtomicUsize,
    /// Slices of each table that are still to be read.
    left: Vec<AtomicUsize>,
    entries: AtomicU64,
    unreadable: AtomicU64,
    stop: AtomicBool,
    /// The first that was met; one that says what is damaged goes before one that does not.
    fault: Mutex<Option<Fault>>,
}

const SLICES: usize = 256;

impl Reading {
    fn new(tables: usize) -> Self {
        Self {
            next: AtomicUsize::new(0),
            left: (0..tables).map(|_| AtomicUsize::new(SLICES)).collect(),
            entries: AtomicU64::new(0),
            unreadable: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            fault: Mutex::new(None),
        }
    }

    /// The next slice: the number of its table, and the byte.
    fn next(&self) -> Option<(usize, u8)> {
        if self.stop.load(Ordering::Relaxed) {
            return None;
        }
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        (next < self.left.len() * SLICES).then_some((next / SLICES, (next % SLICES) as u8))
    }

    /// Whether this was the table's last one.
    fn slice_ended(&self, table: usize) -> bool {
        self.left[table].fetch_sub(1, Ordering::Relaxed) == 1
    }

    fn fault(&self, fault: Fault) {
        let mut first = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none()
            || matches!((&*first, &fault), (Some(Fault::Unable(_)), Fault::Damaged(_)))
        {
            *first = Some(fault);
        }
    }
}
