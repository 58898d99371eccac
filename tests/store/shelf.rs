//! A backend in memory that outlives whoever has opened it, as a disk does, and that fails, stalls
//! and lies when the test says so.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::support::PATIENCE;
use postpone::clock::Time;
use postpone::store::{Backend, Change, Fault, Home, RawKey};

/// What is kept: entries by table and key.
pub(crate) type Entries = BTreeMap<(String, RawKey), Vec<u8>>;

/// What a backend was asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Open,
    Commit,
    Scan { table: String, byte: u8 },
    Get,
}

/// What is to come of a call.
#[derive(Clone)]
pub(crate) enum Fate {
    Done,
    /// It fails and has done nothing.
    Fails(Trouble),
    /// It is done, and fails all the same.
    DoneAndFails(Trouble),
    /// It fails like the process that asked: nothing more is done for it.
    Dies {
        done: bool,
    },
    /// It waits here first.
    Waits(Arc<Gate>),
}

/// A fault that can be made more than once.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trouble {
    Full(&'static str),
    Away(&'static str),
    Damaged(&'static str),
}

impl From<Trouble> for Fault {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Full(why) => Self::Unable(io::Error::new(io::ErrorKind::StorageFull, why)),
            Trouble::Away(why) => Self::Unable(io::Error::other(why)),
            Trouble::Damaged(what) => Self::Damaged(what.into()),
        }
    }
}

/// The disk. Clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct Shelf(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    grown: Condvar,
    plan: Mutex<Plan>,
}

#[derive(Default)]
struct State {
    kept: Entries,
    /// What was moved out of the way.
    aside: Vec<Entries>,
    /// Each commit that was done: how many changes.
    commits: Vec<usize>,
    /// What every commit that said so has written.
    acknowledged: Entries,
    dead: bool,
    /// Whether it was taken away from whoever uses it.
    removed: bool,
    /// When it was said that nothing is known any more.
    begun: Option<Time>,
}

struct Plan(Box<dyn FnMut(Call) -> Fate + Send>);

impl Default for Plan {
    fn default() -> Self {
        Self(Box::new(|_| Fate::Done))
    }
}

impl Shelf {
    /// What comes of each call from now on.
    pub(crate) fn plan(&self, plan: impl FnMut(Call) -> Fate + Send + 'static) {
        *lock(&self.0.plan) = Plan(Box::new(plan));
    }

    /// From now on these calls wait at this gate, and all others are done.
    pub(crate) fn stalls_at(
        &self,
        mut stalls: impl FnMut(&Call) -> bool + Send + 'static,
    ) -> (Arc<Gate>, OpensAtLast) {
        let gate = Arc::new(Gate::default());
        let waits_there = gate.clone();
        self.plan(move |call| match stalls(&call) {
            true => Fate::Waits(waits_there.clone()),
            false => Fate::Done,
        });
        (gate.clone(), OpensAtLast(gate))
    }

    /// Everything works again, for a new process.
    pub(crate) fn repaired(&self) {
        *lock(&self.0.plan) = Plan::default();
        self.state().dead = false;
    }

    pub(crate) fn kept(&self) -> Entries {
        self.state().kept.clone()
    }

    /// It is taken away, with all that is on it.
    pub(crate) fn remove(&self) {
        self.state().removed = true;
    }

    /// When it was said that nothing is known any more.
    pub(crate) fn begun(&self) -> Option<Time> {
        self.state().begun
    }

    /// What was written by commits that did not fail.
    pub(crate) fn acknowledged(&self) -> Entries {
        self.state().acknowledged.clone()
    }

    /// How many changes each commit had.
    pub(crate) fn commits(&self) -> Vec<usize> {
        self.state().commits.clone()
    }

    pub(crate) fn aside(&self) -> Vec<Entries> {
        self.state().aside.clone()
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.state().dead
    }

    /// As a version has left it that did not know this table.
    pub(crate) fn without(&self, table: &str) {
        self.state().kept.retain(|(name, _), _| name != table);
    }

    pub(crate) fn put(&self, table: &str, key: RawKey, value: Vec<u8>) {
        self.state().kept.insert((table.into(), key), value);
    }

    /// Waits until what is kept is so; or until whoever writes has died.
    #[track_caller]
    pub(crate) fn until(&self, what: &str, so: impl Fn(&Entries) -> bool) {
        let mut state = self.state();
        while !so(&state.kept) && !state.dead {
            let (more, timeout) =
                self.0.grown.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner);
            assert!(!timeout.timed_out(), "gave up waiting for {what}");
            state = more;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }

    /// Does something as it is planned.
    fn call<T>(&self, call: Call, work: impl FnOnce(&mut State) -> T) -> Result<T, Fault> {
        let dead = || Err(Fault::Unable(io::Error::other("the process is dead")));
        if self.is_dead() {
            return dead();
        }
        let commits = call == Call::Commit;
        let fate = lock(&self.0.plan).0(call);
        match &fate {
            Fate::Waits(gate) => gate.pass(),
            Fate::Fails(trouble) => return Err((*trouble).into()),
            Fate::Dies { done: false } => {
                self.state().dead = true;
                self.0.grown.notify_all();
                return dead();
            }
            _ => {}
        }
        let mut state = self.state();
        let done = work(&mut state);
        if let Fate::Dies { .. } = fate {
            state.dead = true;
        } else if commits && !matches!(fate, Fate::DoneAndFails(_)) {
            state.acknowledged = state.kept.clone();
        }
        drop(state);
        self.0.grown.notify_all();
        match fate {
            Fate::DoneAndFails(trouble) => Err(trouble.into()),
            Fate::Dies { .. } => dead(),
            _ => Ok(done),
        }
    }
}

impl Home for Shelf {
    fn open(&self) -> Result<Box<dyn Backend>, Fault> {
        self.call(Call::Open, |_| Box::new(self.clone()) as Box<dyn Backend>)
    }

    fn set_aside(&self, _: Time) -> io::Result<String> {
        let mut state = self.state();
        let kept = std::mem::take(&mut state.kept);
        state.aside.push(kept);
        Ok(format!("shelf.damaged-{}", state.aside.len()))
    }

    fn begins_anew(&mut self, now: Time) -> io::Result<()> {
        self.state().begun = Some(now);
        Ok(())
    }

    fn last_ran(&self) -> Option<Time> {
        None
    }

    fn runs(&self, _: Time) -> io::Result<()> {
        Ok(())
    }

    fn is_in_place(&self) -> bool {
        !self.state().removed
    }

    fn move_in(&mut self, _: Time) -> io::Result<()> {
        let mut state = self.state();
        (state.removed, state.kept) = (false, Entries::new());
        Ok(())
    }
}

impl Backend for Shelf {
    fn commit(&self, batch: &[Change]) -> Result<(), Fault> {
        self.call(Call::Commit, |state| {
            for Change { table, key, value } in batch {
                let entry = ((*table).to_owned(), *key);
                match value {
                    Some(value) => _ = state.kept.insert(entry, value.clone()),
                    None => _ = state.kept.remove(&entry),
                }
            }
            state.commits.push(batch.len());
        })
    }

    fn scan(
        &self,
        table: &str,
        byte: u8,
        each: &mut dyn FnMut(RawKey, &[u8]),
    ) -> Result<(), Fault> {
        let shown = self.call(Call::Scan { table: table.to_owned(), byte }, |state| {
            slice(&state.kept, table, byte)
        });
        let (entries, fault) = match shown {
            Ok(entries) => (entries, Ok(())),
            // What is damaged is shown as far as it can be read.
            Err(fault @ Fault::Damaged(_)) => (slice(&self.kept(), table, byte), Err(fault)),
            Err(fault) => return Err(fault),
        };
        entries.iter().for_each(|(key, value)| each(*key, value));
        fault
    }

    fn get(&self, table: &str, key: RawKey) -> Result<Option<Vec<u8>>, Fault> {
        self.call(Call::Get, |state| state.kept.get(&(table.to_owned(), key)).cloned())
    }

    fn compact(&self) -> Result<(), Fault> {
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.state().kept.len() as u64
    }
}

fn slice(kept: &Entries, table: &str, byte: u8) -> Vec<(RawKey, Vec<u8>)> {
    let of_slice = |(name, key): &(String, RawKey)| name == table && key[0] == byte;
    let entries = kept.iter().filter(|(entry, _)| of_slice(entry));
    entries.map(|((_, key), value)| (*key, value.clone())).collect()
}

/// Where calls wait until it is opened.
#[derive(Default)]
pub(crate) struct Gate {
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl Gate {
    /// Waits here.
    fn pass(&self) {
        let mut state = lock(&self.state);
        state.0 += 1;
        self.changed.notify_all();
        while !state.1 {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until so many wait here.
    #[track_caller]
    pub(crate) fn reached_by(&self, how_many: usize) {
        let mut state = lock(&self.state);
        while state.0 < how_many {
            let waited = self.changed.wait_timeout(state, PATIENCE);
            let (more, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            assert!(!timeout.timed_out(), "nobody came to the gate");
            state = more;
        }
    }

    pub(crate) fn open(&self) {
        lock(&self.state).1 = true;
        self.changed.notify_all();
    }
}

/// A test that fails opens what it has closed, or its threads would never end.
pub(crate) struct OpensAtLast(pub(crate) Arc<Gate>);

impl Drop for OpensAtLast {
    fn drop(&mut self) {
        self.0.open();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
