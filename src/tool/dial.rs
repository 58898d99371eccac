//! A unix socket of a daemon that may be stuck.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connects within a time, which holds for reading and writing as well: a daemon that is stuck takes
/// no connections.
pub(super) fn dial(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let socket =
        net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    for end in [Timeout::Send, Timeout::Recv] {
        set_socket_timeout(&socket, end, Some(patience))?;
    }
    net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}
