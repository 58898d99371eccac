//! What a table keeps under a key.

use std::marker::PhantomData;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::clock::Time;

/// A value that fades: at some moment it says no more than its absence would.
pub trait Record: Send + Sync {
    /// Bytes of it that are kept apart from the table.
    const APART: usize = 0;

    /// Whether it lets somebody pass who would be stopped without it.
    ///
    /// What favours is not shortened by a clock that may be behind: it would fade as soon as the
    /// clock is put right. What stops is, since somebody has been told to wait by it.
    const FAVOURS: bool;

    /// Whether dropping it now loses nothing.
    fn forgettable(&self, now: Time) -> bool;

    /// What would be lost by dropping it before it is forgettable.
    fn worth(&self) -> Worth;

    /// It as seen from `now`, if it is not the same: a clock that was ahead has stored moments
    /// that lie further away than they can have been meant. `longest` is for how long the rules in
    /// force store something of its kind, for kinds that do not know it themselves.
    fn seen_from(&self, now: Time, longest: Duration) -> Option<Self>
    where
        Self: Sized;
}

/// Which of the records of a full table goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Worth {
    /// A single message, or little more, has made it. The least goes first.
    Fleeting(u64),
    /// It took more to earn it than any flood has, or something still depends on it: what is new
    /// never takes its place.
    Lasting,
}

/// A record that can be written down.
///
/// Its form is a part of the version of a state folder (see [`crate::store`]): what an earlier
/// version has written must be read for as long as that version is. For people, and for another
/// host, it is a JSON object.
pub trait Stored: Record + Default + Serialize + DeserializeOwned + 'static {
    /// Appends its bytes.
    fn encode(&self, bytes: &mut Vec<u8>);

    /// What bytes stand for; nothing if no record of this kind was ever written so.
    fn decode(bytes: &[u8]) -> Option<Self>;

    /// Takes in what was known elsewhere under the same key.
    ///
    /// Neither order nor repetition makes a difference, so that it may be done while both go on
    /// changing: of each fact the stronger one holds.
    fn fold(&mut self, other: Self);
}

/// A large record is better kept apart: a table of it has room for a third more than it holds.
impl<R: Record> Record for Box<R> {
    const APART: usize = size_of::<R>() + R::APART;
    const FAVOURS: bool = R::FAVOURS;

    fn forgettable(&self, now: Time) -> bool {
        (**self).forgettable(now)
    }

    fn worth(&self) -> Worth {
        (**self).worth()
    }

    fn seen_from(&self, now: Time, longest: Duration) -> Option<Self> {
        (**self).seen_from(now, longest).map(Self::new)
    }
}

impl<R: Stored> Stored for Box<R> {
    fn encode(&self, bytes: &mut Vec<u8>) {
        (**self).encode(bytes);
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        R::decode(bytes).map(Self::new)
    }

    fn fold(&mut self, other: Self) {
        (**self).fold(*other);
    }
}

/// That something holds until then, and nothing else. Where it is `LASTING`, what is new never takes
/// its place in a full table; else the one goes first that is over first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Until<const LASTING: bool> {
    /// When it is over.
    pub until: Time,
}

impl<const LASTING: bool> Record for Until<LASTING> {
    const FAVOURS: bool = true;

    fn forgettable(&self, now: Time) -> bool {
        self.until <= now
    }

    fn worth(&self) -> Worth {
        if LASTING { Worth::Lasting } else { Worth::Fleeting(self.until.as_nanos()) }
    }

    fn seen_from(&self, now: Time, longest: Duration) -> Option<Self> {
        let until = self.until.at_most(longest, now);
        (until != self.until).then_some(Self { until })
    }
}

impl<const LASTING: bool> Stored for Until<LASTING> {
    fn encode(&self, bytes: &mut Vec<u8>) {
        put_time(bytes, self.until);
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut parts = Parts::of(bytes);
        let read = Self { until: parts.time()? };
        parts.end(read)
    }

    fn fold(&mut self, other: Self) {
        self.until = self.until.max(other.until);
    }
}

/// That an administrator has said that something holds for so long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Said {
    /// When it is over, unless the clock was ahead when it was said.
    pub until: Time,
    /// For how long it was said. Nothing where an earlier version has written it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lasting: Option<Lasting>,
}

/// A span in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Lasting(u64);

impl Lasting {
    /// From now until then.
    pub fn from(now: Time, until: Time) -> Self {
        Self(until.since(now).as_nanos() as u64)
    }

    /// Appends its bytes.
    pub fn encode(self, bytes: &mut Vec<u8>) {
        bytes.extend(self.0.to_le_bytes());
    }

    /// The next bytes of a record, if there are any.
    pub fn decode(parts: &mut Parts<'_>) -> Option<Self> {
        parts.bytes().map(|span| Self(u64::from_le_bytes(span)))
    }
}

impl Said {
    /// It holds from now on until that moment.
    pub fn until(until: Time, now: Time) -> Self {
        Self { until, lasting: Some(Lasting::from(now, until)) }
    }

    /// A moment, whatever the clock is: of what the settings say, and not how long anything lasts.
    pub fn moment(moment: Time) -> Self {
        Self::until(moment, Time::default())
    }

    /// Whether it is that.
    pub fn is_moment(&self) -> bool {
        *self == Self::moment(self.until)
    }

    /// When it is over as seen from now; `longest` is the longest that can be said.
    pub fn ends(&self, now: Time, longest: Duration) -> Time {
        let said = self.lasting.map_or(longest, |lasting| Duration::from_nanos(lasting.0));
        self.until.at_most(said.min(longest), now)
    }
}

impl Record for Said {
    const FAVOURS: bool = false;

    fn forgettable(&self, now: Time) -> bool {
        self.until <= now
    }

    fn worth(&self) -> Worth {
        Worth::Lasting
    }

    fn seen_from(&self, now: Time, longest: Duration) -> Option<Self> {
        let until = if self.is_moment() { self.until } else { self.ends(now, longest) };
        (until != self.until).then_some(Self { until, ..*self })
    }
}

impl Stored for Said {
    fn encode(&self, bytes: &mut Vec<u8>) {
        put_time(bytes, self.until);
        self.lasting.inspect(|lasting| lasting.encode(bytes));
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut parts = Parts::of(bytes);
        let (until, lasting) = (parts.time()?, Lasting::decode(&mut parts));
        parts.end(Self { until, lasting })
    }

    fn fold(&mut self, other: Self) {
        if (other.until, other.lasting) > (self.until, self.lasting) {
            *self = other;
        }
    }
}

/// What can be done with records of one kind that are written down, by who does not know the kind.
pub trait Form {
    /// Whether it says no more than its absence would; nothing if the bytes are no such record.
    fn is_faded(&self, bytes: &[u8], now: Time) -> Option<bool>;

    /// It as a JSON object; nothing if the bytes are no such record.
    fn json(&self, bytes: &[u8]) -> Option<String>;

    /// The bytes of a JSON object, or what is wrong with it.
    fn read_json(&self, object: Value) -> Result<Vec<u8>, String>;

    /// What two records of the same key say together; nothing if one is no such record.
    fn folded(&self, one: &[u8], other: &[u8]) -> Option<Vec<u8>>;
}

impl<R: Stored> Form for PhantomData<R> {
    fn is_faded(&self, bytes: &[u8], now: Time) -> Option<bool> {
        R::decode(bytes).map(|record| record.forgettable(now))
    }

    fn json(&self, bytes: &[u8]) -> Option<String> {
        serde_json::to_string(&R::decode(bytes)?).ok()
    }

    fn read_json(&self, object: Value) -> Result<Vec<u8>, String> {
        let bytes = written(&serde_json::from_value::<R>(object).map_err(|e| e.to_string())?);
        // A number that is larger than any, or a name that is longer.
        R::decode(&bytes).map(|_| bytes).ok_or_else(|| "a value is out of its range".into())
    }

    fn folded(&self, one: &[u8], other: &[u8]) -> Option<Vec<u8>> {
        let mut both = R::decode(one)?;
        both.fold(R::decode(other)?);
        Some(written(&both))
    }
}

/// A record written down.
pub fn written(record: &impl Stored) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(24);
    record.encode(&mut bytes);
    bytes
}

/// Folds two records of which the one that was changed last knows all of the other. Of two that
/// were changed at the same moment it is always the same one, whichever was there first.
pub fn keep_later<R: Stored>(one: &mut R, other: R, changed: impl Fn(&R) -> Time) {
    let at_once = || written(&other).cmp(&written(one));
    if changed(&other).cmp(&changed(one)).then_with(at_once).is_gt() {
        *one = other;
    }
}

/// Reads the fixed-size parts of a record one after the other.
pub struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    /// Begins with these bytes.
    pub fn of(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next so many bytes.
    pub fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (part, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*part)
    }

    /// The next four bytes as a number, the least first.
    pub fn number(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    /// The next eight bytes as a time: nanoseconds since 1970, the least byte first.
    pub fn time(&mut self) -> Option<Time> {
        self.bytes().map(|bytes| Time::from_nanos(u64::from_le_bytes(bytes)))
    }

    /// All bytes that are left.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }

    /// What was read, if there is nothing left.
    pub fn end<T>(self, read: T) -> Option<T> {
        self.0.is_empty().then_some(read)
    }
}

/// Appends a time as [`Parts::time`] reads it.
pub fn put_time(bytes: &mut Vec<u8>, time: Time) {
    bytes.extend(time.as_nanos().to_le_bytes());
}
