//! fjall's journal, as far as it must be understood to keep what is whole in a damaged one.
//!
//! A journal is a file of batches, each of them a commit. fjall gives up the whole database at a
//! batch whose checksum is wrong, and silently cuts the journal at one that it cannot parse. So
//! journals are read here first: a damaged batch is taken out, and those before and behind it stay.
//! The original is kept beside as `N.jnl.damaged`, the last one of each number.
//!
//! Layout, numbers little-endian: `1`, entries `u32`, sequence number `u64`; for each entry `2`,
//! kind `u8`, compression `u8`, table `u64`, length of the key `u16`, of the value `u32`, and of the
//! value as it lies there `u32`, key, value, or `4` and a table `u64` to clear; then `3`, the xxh3 of
//! all entries `u64`, and [`END_MARK`].

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

const END_MARK: &[u8; 4] = b"FJL\x03";
const HEAD: usize = 1 + 4 + 8;
const TAIL: usize = 1 + 8 + END_MARK.len();
/// Sequence numbers grow by one a commit. A larger step than this is a flipped bit.
const LEAP: u64 = 1 << 40;

/// What was taken out of a journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lost {
    /// Commits.
    pub(super) commits: u64,
    /// Bytes that they took.
    pub(super) bytes: u64,
}

/// One batch that is as it was written.
struct Batch {
    place: Range<usize>,
    sequence: u64,
}

/// Takes out of every journal what fjall could not read, and says how much it was. A batch torn by
/// a crash, which nobody was told had been written, is taken out and not counted.
pub(super) fn mend(folder: &Path) -> io::Result<Lost> {
    let mut lost = Lost::default();
    if !folder.try_exists()? {
        return Ok(lost);
    }
    for path in journals(folder)? {
        // One at a time: 64 MB, given back before fjall opens anything.
        let bytes = fs::read(&path)?;
        let bytes = written(&bytes);
        let (kept, gone) = split(bytes);
        let torn = kept.last().map_or(0, |batch| batch.place.end) < bytes.len();
        if gone == Lost::default() && !torn {
            continue;
        }
        rewrite(&path, bytes, &kept, gone != Lost::default())?;
        lost.commits += gone.commits;
        lost.bytes += gone.bytes;
    }
    Ok(lost)
}

/// The journals of a database; none if there is no folder.
pub(super) fn journals(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let files = match fs::read_dir(folder) {
        Ok(files) => files,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let files = files.map(|file| Ok(file?.path()));
    let journal = |path: &PathBuf| path.extension().is_some_and(|end| end == "jnl");
    files.filter(|path| path.as_ref().is_ok_and(journal)).collect()
}

/// Whether a journal holds a commit.
pub(super) fn holds_commits(path: &Path) -> io::Result<bool> {
    Ok(!split(written(&fs::read(path)?)).0.is_empty())
}

/// A journal's file is made with its full length, most of which stays blank: what is before that.
fn written(mut bytes: &[u8]) -> &[u8] {
    const BLANK: [u8; 1 << 12] = [0; 1 << 12];
    while let Some(rest) = bytes.strip_suffix(&BLANK) {
        bytes = rest;
    }
    &bytes[..bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)]
}

/// The batches that are whole, and what lies between and behind them.
fn split(bytes: &[u8]) -> (Vec<Batch>, Lost) {
    let (mut kept, mut lost, mut at) = (Vec::<Batch>::new(), Lost::default(), 0);
    while let Some(batch) = next_batch(bytes, at) {
        lost.take(bytes, at..batch.place.start);
        at = batch.place.end;
        kept.push(batch);
    }
    // A commit that had been confirmed has its mark at the end, or has at least its whole length; one
    // torn by a crash has neither.
    let rest = &bytes[at..];
    if marks(rest).next().is_some() || length(rest).is_some_and(|length| length <= rest.len()) {
        lost.take(bytes, at..bytes.len());
    }
    let mut last = None;
    let mut sequences: VecDeque<u64> = kept.iter().map(|batch| batch.sequence).collect();
    kept.retain(|batch| {
        sequences.pop_front();
        let rises = last.is_none_or(|last| (last + 1..=last + LEAP).contains(&batch.sequence));
        // The next one goes on from the last one, so this one is out of line.
        let towers = sequences
            .front()
            .is_some_and(|next| *next <= batch.sequence && last.is_none_or(|last| *next > last));
        if rises && !towers {
            last = Some(batch.sequence);
        } else {
            lost.take(bytes, batch.place.clone());
        }
        rises && !towers
    });
    (kept, lost)
}

impl Lost {
    fn take(&mut self, bytes: &[u8], place: Range<usize>) {
        if !place.is_empty() {
            self.commits += marks(&bytes[place.clone()]).count().max(1) as u64;
            self.bytes += place.len() as u64;
        }
    }
}

/// The first whole batch at this place or behind it.
fn next_batch(bytes: &[u8], at: usize) -> Option<Batch> {
    if let Some(batch) = batch(bytes, at) {
        return Some(batch);
    }
    // The next may begin where this one says it ends, if its mark is what is damaged.
    let by_its_account = length(&bytes[at..]).and_then(|length| batch(bytes, at + length));
    by_its_account
        .or_else(|| marks(&bytes[at..]).find_map(|mark| batch(bytes, at + mark + END_MARK.len())))
}

fn marks(bytes: &[u8]) -> impl Iterator<Item = usize> {
    memchr::memmem::find_iter(bytes, END_MARK)
}

/// The batch that begins here, if it is whole.
fn batch(bytes: &[u8], at: usize) -> Option<Batch> {
    let rest = bytes.get(at..)?;
    let length = length(rest)?;
    let (entries, tail) = rest.get(HEAD..length)?.split_last_chunk::<TAIL>()?;
    let sum = u64::from_le_bytes(*tail[1..].first_chunk()?);
    let whole = tail[0] == 3 && tail.ends_with(END_MARK) && xxh3_64(entries) == sum;
    let sequence = u64::from_le_bytes(*rest[5..].first_chunk()?);
    whole.then_some(Batch { place: at..at + length, sequence })
}

/// The length of the batch that begins here, by what itself says.
fn length(bytes: &[u8]) -> Option<usize> {
    let entries = u32::from_le_bytes(*bytes.strip_prefix(&[1])?.first_chunk()?);
    let mut at = HEAD;
    for _ in 0..entries {
        at += match *bytes.get(at)? {
            2 => {
                let key = u16::from_le_bytes(*bytes.get(at + 11..)?.first_chunk()?);
                let value = u32::from_le_bytes(*bytes.get(at + 17..)?.first_chunk()?);
                21 + usize::from(key) + usize::try_from(value).ok()?
            }
            4 => 9,
            _ => return None,
        };
    }
    Some(at + TAIL)
}

/// Puts these batches in the place of a journal; keeps what it was, if it was damaged.
fn rewrite(path: &Path, bytes: &[u8], kept: &[Batch], damaged: bool) -> io::Result<()> {
    let (beside, aside) = (path.with_extension("jnl.mended"), path.with_extension("jnl.damaged"));
    let mut file = OpenOptions::new();
    let mut file = file.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    kept.iter().try_for_each(|batch| file.write_all(&bytes[batch.place.clone()]))?;
    file.sync_all()?;
    if damaged {
        // Linked, not moved: at no moment is there no journal.
        let _ = fs::remove_file(&aside);
        fs::hard_link(path, &aside)?;
    }
    fs::rename(&beside, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}
