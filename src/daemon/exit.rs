//! Exit codes of sysexits.h, and why the daemon could not serve.

use std::fmt::{self, Display, Formatter};
use std::io;

use crate::store::Fault;
use crate::store::folder::Refused;

/// EX_DATAERR: what was read is damaged, or not what was expected.
pub const DATA: u8 = 65;
/// EX_NOINPUT: there is nothing to read.
pub const INPUT: u8 = 66;
/// EX_OSERR: the system would not give what every daemon needs.
pub const SYSTEM: u8 = 71;
/// EX_CANTCREAT: a socket could not be made.
pub const SOCKET: u8 = 73;
/// EX_CANTCREAT: what was asked for could not be written there.
pub const OUTPUT: u8 = 73;
/// EX_IOERR: the state cannot be used, or was not saved.
pub const STATE: u8 = 74;
/// EX_CONFIG: the settings cannot be used.
pub const SETTINGS: u8 = 78;

/// Why the daemon could not serve.
#[derive(Debug)]
pub(super) enum Trouble {
    Settings(String),
    Socket(String, io::Error),
    State(String, Refused),
    Unsaved(Fault),
    System(&'static str, io::Error),
}

impl Trouble {
    pub(super) fn code(&self) -> u8 {
        match self {
            Self::Settings(_) => SETTINGS,
            Self::Socket(..) => SOCKET,
            Self::State(..) | Self::Unsaved(_) => STATE,
            Self::System(..) => SYSTEM,
        }
    }
}

impl Display for Trouble {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Settings(what) => write!(f, "{what}"),
            Self::Socket(address, error) => write!(f, "cannot listen on {address}: {error}"),
            Self::State(path, refused) => write!(f, "cannot keep state in {path}: {refused}"),
            Self::Unsaved(fault) => write!(f, "state was not saved to its end: {fault}"),
            Self::System(what, error) => write!(f, "{what}: {error}"),
        }
    }
}
