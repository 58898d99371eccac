//! Whether postpone answers where Postfix is to ask it.

use std::ffi::CString;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use nix::unistd::{User, getgrouplist};

use super::list::Kind;
use crate::front::address::Address;
use crate::tool::dial::dial;

/// How long it may take, each step of it. The daemon answers within milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// What an MTA says first: a frame of 13 bytes, version 6, every action and every option.
const NEGOTIATE: [u8; 17] = [0, 0, 0, 13, b'O', 0, 0, 0, 6, 0, 0, 1, 0xff, 0, 0x1f, 0xff, 0xff];

/// Permission bits: to connect to a socket one must be allowed to write to it.
const WRITE: u32 = 0o2;
const ENTER: u32 = 0o1;

trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

/// Asks who is there. A milter is spoken to, which it counts as no session. A policy service has
/// no such greeting, and what it is asked it would count: that it is there must do.
pub(super) fn knock(address: &Address, kind: Kind) -> io::Result<()> {
    let mut stream: Box<dyn Stream> = match address {
        Address::Inet(address) => {
            let stream = TcpStream::connect_timeout(address, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Box::new(stream)
        }
        Address::Unix(path) => Box::new(dial(path, PATIENCE)?),
    };
    if kind == Kind::Policy {
        return Ok(());
    }
    let strange = || io::Error::new(ErrorKind::InvalidData, "the server there is no milter");
    stream.write_all(&NEGOTIATE)?;
    let mut head = [0; 5];
    stream.read_exact(&mut head).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => ErrorKind::TimedOut.into(),
        _ => strange(),
    })?;
    if head[4] == b'O' { Ok(()) } else { Err(strange()) }
}

/// Whether Postfix may use the socket: we are root, whom nothing stops, but its processes are this
/// user's, with all of that user's groups.
pub(super) fn is_open_to(user: &str, path: &Path) -> bool {
    let Ok(Some(user)) = User::from_name(user) else { return true };
    let name = CString::new(user.name).unwrap_or_default();
    let groups = getgrouplist(&name, user.gid).unwrap_or_else(|_| vec![user.gid]);
    let may = |path: &Path, bit: u32| {
        let Ok(metadata) = path.metadata() else { return true };
        let shift = match () {
            () if metadata.uid() == user.uid.as_raw() => 6,
            () if groups.iter().any(|group| group.as_raw() == metadata.gid()) => 3,
            () => 0,
        };
        metadata.mode() >> shift & bit != 0
    };
    may(path, WRITE) && path.ancestors().skip(1).all(|folder| may(folder, ENTER))
}
