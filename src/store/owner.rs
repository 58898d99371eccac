//! Whose rights are taken to use a folder of state.
//!
//! The daemon's own user can put links and pipes where root expects a file. Following none of them is
//! hard to get right in a library's files too; having no more rights than that user is simple.

use std::ffi::CString;
use std::fmt::{self, Display, Formatter};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::{User, getgrouplist};
use rustix::fs::{Gid, Mode, Uid};
use rustix::process::{geteuid, umask};
use rustix::thread;

/// The user that a folder belongs to, where that is another than root, who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    name: Option<String>,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl Display for Owner {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => f.write_str(name),
            None => write!(f, "user {}", self.uid),
        }
    }
}

impl Owner {
    /// Whose rights are to be taken before this folder is used; nobody's where it does not exist, or
    /// belongs to whoever asks, or where that is not root.
    pub fn of(folder: &Path) -> io::Result<Option<Self>> {
        let Ok(found) = std::fs::metadata(folder) else { return Ok(None) };
        if !geteuid().is_root() || found.uid() == 0 {
            return Ok(None);
        }
        let user = User::from_uid(found.uid().into()).ok().flatten();
        let groups = match &user {
            Some(user) => {
                let name = CString::new(user.name.as_str())?;
                let groups = getgrouplist(&name, user.gid)?;
                groups.into_iter().map(|group| group.as_raw()).collect()
            }
            None => vec![found.gid()],
        };
        let name = user.map(|user| user.name);
        Ok(Some(Self { name, uid: found.uid(), gid: found.gid(), groups }))
    }

    /// From now on root has no more rights than this user. Its capabilities may still be asked for
    /// again. For the calling thread and those that it starts.
    pub fn take_rights(&self) -> io::Result<()> {
        let groups: Vec<_> = self.groups.iter().copied().map(Gid::from_raw).collect();
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        thread::set_thread_groups(&groups)?;
        thread::set_thread_res_gid(gid, gid, gid)?;
        thread::set_keep_capabilities(true)?;
        thread::set_thread_res_uid(uid, uid, uid)?;
        Ok(())
    }
}

/// Whatever this process makes from now on is open to its own user alone.
pub fn keep_private() {
    umask(Mode::RWXG | Mode::RWXO);
}
