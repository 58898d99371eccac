//! What lies on disk.

use std::time::Duration;

use postpone::clock::{Moment, Time};
use postpone::config::Settings;
use postpone::meter::distinct::Distinct;
use postpone::meter::key::{Key, Secret};
use postpone::meter::record::{Form, Record, Said, Stored, written};
use postpone::meter::table::{Kept, Restored};
use postpone::policy::{Bounds, Memory};

/// Three records of one table, and a moment. As bytes: the table's name and a line feed; the length
/// of the first record and of the second, two bytes each with the least first; the moment in
/// nanoseconds since 1970, eight bytes; and the records one after the other.
pub struct Three {
    /// The table's name.
    pub table: String,
    /// The moment.
    pub now: u64,
    /// As they are written down.
    pub records: [Vec<u8>; 3],
}

impl Three {
    /// Reads them.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let at = bytes.iter().position(|byte| *byte == b'\n')?;
        let table = std::str::from_utf8(&bytes[..at]).ok()?.into();
        let (one, rest) = bytes[at + 1..].split_first_chunk()?;
        let (other, rest) = rest.split_first_chunk()?;
        let (now, rest) = rest.split_first_chunk()?;
        let (one, rest) = rest.split_at_checked(u16::from_le_bytes(*one).into())?;
        let (other, third) = rest.split_at_checked(u16::from_le_bytes(*other).into())?;
        let now = u64::from_le_bytes(*now);
        Some(Self { table, now, records: [one, other, third].map(Vec::from) })
    }

    /// What holds of them, if there is such a table.
    pub fn obey(&self) {
        let memory = memory();
        let found = memory.kept().find(|(known, _)| *known == self.table);
        let Some((name, table)) = found else { return };
        let [one, other, third] = self.records.each_ref().map(Vec::as_slice);
        obeys_the_laws(table.form(), [one, other, third]);
        can_be_read_if_it_is_taken(table.form(), one, self.now);
        // Up to the year 2262: behind a later moment there is no room for a span.
        let now = Time::from_nanos(self.now.min(u64::MAX / 2));
        is_worth_its_own_span(&memory, name, &*table, [one, other], now);
    }
}

/// [`Three`] records.
pub fn records(bytes: &[u8]) {
    if let Some(three) = Three::parse(bytes) {
        three.obey();
    }
}

/// Empty memory under the built-in rules.
pub fn memory() -> Memory {
    let memory = Memory::new(&Secret::new([0; 16]), Bounds { max_clients: 8, max_triplets: 8 });
    // Rules in force say for how long something is stored.
    let _ = Settings::default().policy(&memory);
    memory
}

/// What holds of every kind of record: it is written down and read back the same, for people too;
/// and to fold such records, neither order nor repetition makes a difference.
fn obeys_the_laws(form: &dyn Form, records: [&[u8]; 3]) {
    let read = records.map(|bytes| {
        let json = form.json(bytes)?;
        let object = serde_json::from_str(&json).expect("an object");
        let again = form.read_json(object).expect("what was printed");
        assert_eq!(form.json(&again).as_ref(), Some(&json), "it is read back the same");
        Some(again)
    });
    let fold = |one: &[u8], other: &[u8]| form.folded(one, other);
    for (bytes, read) in records.iter().zip(&read) {
        assert_eq!(fold(bytes, bytes).is_some(), read.is_some());
    }
    let [Some(a), Some(b), c] = read else { return };
    let whole = |one: &[u8], other: &[u8]| fold(one, other).expect("two records");
    let both = whole(&a, &b);
    assert_eq!(both, whole(&b, &a), "in any order");
    // To fold a record with itself brings it into the form that folding makes.
    let alone = whole(&a, &a);
    assert_eq!(whole(&alone, &alone), alone);
    assert_eq!(whole(&both, &a), both, "again");
    assert_eq!(whole(&b, &both), both, "again");
    let Some(c) = c else { return };
    assert_eq!(whole(&both, &c), whole(&a, &whole(&b, &c)), "in any order");
}

/// A record as people may write it, with one value that is too large or too long: it is refused, or
/// what is written down of it can be read.
fn can_be_read_if_it_is_taken(form: &dyn Form, record: &[u8], number: u64) {
    let Some(json) = form.json(record) else { return };
    let mut object: serde_json::Value = serde_json::from_str(&json).expect("an object");
    let values = object.as_object_mut().expect("an object");
    let chosen = number as usize % values.len();
    let value = values.values_mut().nth(chosen).expect("one of them");
    *value = match value {
        serde_json::Value::String(_) => "x".repeat(65).into(),
        _ => 1e39.into(),
    };
    if let Ok(bytes) = form.read_json(object.clone()) {
        assert!(form.json(&bytes).is_some(), "{object} is written down as what cannot be read");
    }
}

const DAY: Duration = Duration::from_secs(86_400);

/// For how long the built-in rules store a record of this table at most.
///
/// Panics where a table has no row here: one more kind of record needs its span.
fn longest(table: &str, json: &str) -> Duration {
    match table {
        "pending" => DAY * 2,
        "crowds" => DAY * 2 + Duration::from_secs(1),
        "passed" | "proven" | "imported" | "contacts" | "names" => DAY * 36,
        "senders" | "returns" => DAY * 60,
        "neighbourhoods" => DAY,
        "allowed" => DAY * 90,
        "maintenance" => DAY * 7,
        "meters" | "sketches" => DAY * 3,
        // How long offences are remembered after the wait depends on how many there were.
        "penalties" => DAY * 3 + remembered(json),
        other => panic!("no span is stated for the table {other}"),
    }
}

fn is_moment(said: &str) -> bool {
    serde_json::from_str(said).is_ok_and(|said: Said| said.is_moment())
}

fn remembered(penalty: &str) -> Duration {
    let penalty: serde_json::Value = serde_json::from_str(penalty).expect("an object");
    let time =
        |key: &str| -> Time { serde_json::from_value(penalty[key].clone()).expect("a time") };
    time("forgotten").since(time("until"))
}

/// Two records that come from disk to a host whose clock says `now`, one after the other: together
/// they are worth no more than what the rules store, seen from then.
fn is_worth_its_own_span(
    memory: &Memory,
    name: &str,
    table: &dyn Kept,
    records: [&[u8]; 2],
    now: Time,
) {
    let (key, at) = (Key::from_bytes([7; 16]), Moment::of(now));
    let kept = records.map(|record| table.restore(key, record, at));
    memory.sweep(at, 1);
    if kept.contains(&Restored::Kept)
        && let Some(left) = table.written(key)
    {
        let form = table.form();
        let json = form.json(&left).expect("what was written");
        if name == "maintenance" && is_moment(&json) {
            // It closes nothing; it ends with the moment that the settings name.
            return;
        }
        let then = now + longest(name, &json);
        assert_eq!(form.is_faded(&left, then), Some(true), "{name} {json} at {now}, {then}");
    }
}

/// A sketch from disk, in a window of a length that was stored with another; a time, a window and a
/// value before it. No number of it makes anything panic, what is seen from a clock is counted within
/// its window, and one more value never counts less.
pub fn sketches(bytes: &[u8]) {
    let Some((head, sketch)) = bytes.split_first_chunk::<24>() else { return };
    let [now, window, value] = [0, 8, 16].map(|from| {
        let mut number = [0; 8];
        number.copy_from_slice(&head[from..from + 8]);
        u64::from_le_bytes(number)
    });
    // Up to the year 2262, as above, and windows of up to 146 years.
    let now = Time::from_nanos(now.min(u64::MAX / 2));
    let window = Duration::from_nanos(window.min(u64::MAX / 4));
    let Some(mut read) = Distinct::decode(sketch) else { return };
    assert_eq!(written(&read), sketch, "what is read is written the same");
    let before = read.count(window, now);
    let with = read.with(value, window, now);
    // Where an exact number gives way to an estimate, it may fall by its error.
    let is_exact = sketch[8] == 0;
    assert!(with >= before || is_exact && before == 63, "{with} after {before}");
    let wait = read.wait(value, 3, window, now);
    assert!(wait <= window.max(Duration::from_nanos(2)), "{wait:?}");
    read.add(value, window, now);
    assert_eq!(read.count(window, now), with);
    assert_eq!(read.with(value, window, now), with, "a value is not counted twice");
    if let Some(seen) = read.seen_from(now, window) {
        assert!(seen.forgettable(now + window));
    }
    let gone = now + window.max(Duration::from_nanos(2));
    assert_eq!(read.count(window, gone), 0, "nothing is left behind its window");
}
