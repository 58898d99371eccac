//! What the files of a database tell before fjall opens them.
//!
//! fjall does not expect a damaged file: on some it aborts by panicking twice, on others it removes
//! or cuts what it cannot name any more. Tables are not read here; their blocks have checksums that
//! fjall verifies.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use xxhash_rust::xxh3::xxh3_128;

use super::journal::{holds_commits, journals};

/// Refuses what fjall would abort on, or answer by removing what it does not know.
pub(super) fn examine(folder: &Path) -> io::Result<()> {
    holds_only_files(folder)?;
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
        && !journals(folder)?
            .iter()
            .try_fold(false, |any, path| Ok::<_, io::Error>(any || holds_commits(path)?))?
    {
        // fjall was stopped while it made all this, and would not go on from there.
        fs::remove_dir_all(folder)?;
    }
    Ok(())
}

/// Refuses a pipe, which whoever opens it would wait for, a link, which leads elsewhere, and whatever
/// else we have not made. It is no damage: once it is gone, all is as it was.
fn holds_only_files(path: &Path) -> io::Result<()> {
    let kind = match fs::symlink_metadata(path) {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if kind.is_dir() {
        for entry in fs::read_dir(path)? {
            holds_only_files(&entry?.path())?;
        }
        return Ok(());
    }
    let strange =
        || io::Error::other(format!("{} is neither a regular file nor a folder", path.display()));
    kind.is_file().then_some(()).ok_or_else(strange)
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

fn damaged(path: &Path) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, path.display().to_string())
}
