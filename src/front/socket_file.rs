//! The file of a unix socket: who may use it, and whose it is.
//!
//! It may lie in a folder where others can write too. So whatever is done to it is done to the file
//! that was bound, never to what a link of that name leads to.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid, chownat, openat};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::listen::Permissions;
use crate::setting::OrNone;

/// The file of a socket that this process has bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketFile {
    path: PathBuf,
    /// Its device and its number there.
    identity: (u64, u64),
}

impl SocketFile {
    /// The file that has just been bound at this path.
    pub fn bound_at(path: &Path) -> io::Result<Self> {
        let found = fs::symlink_metadata(path)?;
        Ok(Self { path: path.into(), identity: (found.dev(), found.ino()) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it, unless another process has bound a socket of its own there since.
    pub fn remove(self) -> io::Result<()> {
        match Self::bound_at(&self.path) {
            Ok(there) if there == self => fs::remove_file(&self.path),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Who may use a unix socket. Unset: the daemon's user and group.
#[derive(Clone, Debug, Default)]
pub struct Ownership {
    /// The name of its owner.
    pub owner: Option<String>,
    /// The name of its group.
    pub group: Option<String>,
    /// Its permission bits.
    pub mode: u32,
}

impl Ownership {
    /// As the settings say it.
    pub fn new(owner: &OrNone<String>, group: &OrNone<String>, mode: Permissions) -> Self {
        let name = |name: &OrNone<String>| name.as_option().cloned();
        Self { owner: name(owner), group: name(group), mode: mode.0 }
    }

    /// Gives the socket at this path its owner, group and mode.
    pub(super) fn apply(&self, path: &Path) -> io::Result<()> {
        let unknown = |what: &str, name: &str| {
            io::Error::new(ErrorKind::NotFound, format!("there is no {what} {name:?}"))
        };
        let owner = self.owner.as_deref().map(|name| match nix::unistd::User::from_name(name) {
            Ok(Some(user)) => Ok(Uid::from_raw(user.uid.as_raw())),
            _ => Err(unknown("user", name)),
        });
        let group = self.group.as_deref().map(|name| match nix::unistd::Group::from_name(name) {
            Ok(Some(group)) => Ok(Gid::from_raw(group.gid.as_raw())),
            _ => Err(unknown("group", name)),
        });
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(CWD, path, flags, Mode::empty())?;
        let through = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        if !fs::metadata(&through)?.file_type().is_socket() {
            return Err(io::Error::new(ErrorKind::AlreadyExists, "another file took its place"));
        }
        let given = chownat(&file, "", owner.transpose()?, group.transpose()?, AtFlags::EMPTY_PATH);
        given.map_err(|error| match (error, &self.group) {
            (Errno::PERM, Some(group)) => io::Error::new(
                ErrorKind::PermissionDenied,
                format!(
                    "cannot give it to group {group:?}: this user is not a member. Set \
                     SupplementaryGroups={group} in the unit"
                ),
            ),
            _ => error.into(),
        })?;
        fs::set_permissions(through, fs::Permissions::from_mode(self.mode))
    }
}

pub(super) fn remove_stale(path: &Path) -> io::Result<()> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !kind.is_socket() {
        return Err(io::Error::new(ErrorKind::AlreadyExists, "it exists and is not a socket"));
    }
    // Without waiting: whoever holds it may be stuck, with a full backlog.
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let probe = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match net::connect(&probe, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path),
        Ok(()) | Err(Errno::AGAIN) => {
            Err(io::Error::new(ErrorKind::AddrInUse, "another process serves this socket"))
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_the_file_that_was_bound_is_removed() {
        let folder = std::env::temp_dir().join(format!("postpone-socket-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("s");
        let old = UnixListener::bind(&path).unwrap();
        let mine = SocketFile::bound_at(&path).unwrap();
        // A newer daemon takes its place.
        fs::remove_file(&path).unwrap();
        let new = UnixListener::bind(&path).unwrap();
        mine.remove().unwrap();
        assert!(path.exists());
        SocketFile::bound_at(&path).unwrap().remove().unwrap();
        assert!(!path.exists());
        drop((old, new));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn no_link_is_followed_to_another_file() {
        let folder = std::env::temp_dir().join(format!("postpone-link-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (victim, path) = (folder.join("victim"), folder.join("s"));
        fs::write(&victim, "").unwrap();
        fs::set_permissions(&victim, fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        let everybody = Ownership { mode: 0o666, ..Ownership::default() };
        assert!(everybody.apply(&path).is_err());
        assert_eq!(victim.metadata().unwrap().mode() & 0o777, 0o600);
        fs::remove_dir_all(&folder).unwrap();
    }
}
