//! What the files of a database tell before fjall opens them.
//!
//! fjall does not expect a damaged file: on some it aborts by panicking twice, on others it removes
//! or cuts what it cannot name any more. Tables are not read here; their blocks have checksums that
//! fjall verifies.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_128;

/// What fjall writes behind each batch of its journal.
const BATCH_END: &[u8; 4] = b"FJL\x03";

/// Refuses what fjall would abort on, or answer by removing what it does not know.
pub(super) fn examine(folder: &Path) -> io::Result<()> {
    let trees = folder.join("keyspaces");
    let version = folder.join("version");
    let mut kept = false;
    for tree in
        if trees.try_exists()? { Some(fs::read_dir(&trees)?) } else { None }.into_iter().flatten()
    {
        let tree = tree?;
        if tree.file_type()?.is_file() {
            continue;
        }
        let name = tree.file_name();
        let id: u64 =
            name.to_str().and_then(|n| n.parse().ok()).ok_or_else(|| damaged(&tree.path()))?;
        kept |= examine_tree(&tree.path())? && id > 0;
    }
    let begun = fs::metadata(&version).is_ok_and(|version| version.len() > 0);
    // Without its journal fjall would count from zero again, and pass over all that is written from
    // then on when it is opened next.
    if kept && !(begun && trees.join("0/current").try_exists()? && !journals(folder)?.is_empty()) {
        return Err(damaged(folder));
    }
    if !kept
        && !begun
        && folder.try_exists()?
        && last_ends(folder)?.iter().all(|(_, end)| *end == 0)
    {
        // fjall was stopped while it made all this, and would not go on from there.
        fs::remove_dir_all(folder)?;
    }
    Ok(())
}

/// Whether a tree was begun: its list of files is there, is what was written, and its folder of
/// files holds files.
fn examine_tree(tree: &Path) -> io::Result<bool> {
    let mut filled = false;
    let files = tree.join("tables");
    for file in
        if files.try_exists()? { Some(fs::read_dir(files)?) } else { None }.into_iter().flatten()
    {
        let file = file?;
        if !file.file_type()?.is_file() {
            return Err(damaged(&file.path()));
        }
        filled = true;
    }
    let current = tree.join("current");
    let bytes = match fs::read(&current) {
        // fjall was stopped while it made this tree.
        Err(error) if error.kind() == ErrorKind::NotFound && !filled => return Ok(false),
        read => read?,
    };
    let Some((id, rest)) = bytes.split_first_chunk() else { return Err(damaged(&current)) };
    let Some(sum) = rest.first_chunk() else { return Err(damaged(&current)) };
    let list = tree.join(format!("v{}", u64::from_le_bytes(*id)));
    if xxh3_128(&fs::read(&list)?) != u128::from_le_bytes(*sum) {
        return Err(damaged(&list));
    }
    Ok(true)
}

pub(super) fn journals(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let files = fs::read_dir(folder)?.map(|file| Ok(file?.path()));
    let journal = |path: &PathBuf| path.extension().is_some_and(|end| end == "jnl");
    files.filter(|path| path.as_ref().is_ok_and(journal)).collect()
}

/// Where the last batch but one ends in each journal. fjall cuts a journal silently at the first
/// thing it cannot read. That is right for a batch torn by a crash, which nobody was told of, and
/// only the last one can be; when more is cut, it is damage.
pub(super) fn last_ends(folder: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
    if !folder.try_exists()? {
        return Ok(Vec::new());
    }
    let mut ends = Vec::new();
    for path in journals(folder)? {
        let (mut file, mut chunk) = (File::open(&path)?, vec![0; 1 << 16]);
        let (mut begin, mut kept, mut last_two) = (0, 0, [0, 0]);
        let blank = vec![0; chunk.len()];
        loop {
            let length = kept + file.read(&mut chunk[kept..])?;
            if length == kept {
                break;
            }
            // A journal's file is made with its full length, most of which stays blank.
            let written = if chunk[..length] == blank[..length] { &[] } else { &chunk[..length] };
            let windows = written.windows(BATCH_END.len()).enumerate();
            for (offset, _) in windows.filter(|(_, bytes)| bytes.first_chunk() == Some(BATCH_END)) {
                last_two = [last_two[1], begin + offset as u64];
            }
            kept = length.min(BATCH_END.len() - 1);
            chunk.copy_within(length - kept..length, 0);
            begin += (length - kept) as u64;
        }
        ends.push((path, last_two[0]));
    }
    Ok(ends)
}

fn damaged(path: &Path) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, path.display().to_string())
}
