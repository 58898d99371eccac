//! Why the daemon could not serve.

use std::fmt::{self, Display, Formatter};
use std::io;

use crate::exit;
use crate::front::listen;
use crate::store::Fault;
use crate::store::folder::Refused;

/// Why the daemon could not serve.
#[derive(Debug)]
pub(super) enum Trouble {
    Settings(String),
    Socket(String, io::Error),
    State(String, Refused),
    Unsaved(Fault),
    System(&'static str, io::Error),
    /// What was to run as long as the daemon does has ended.
    Ended(String),
    /// A worker did not end when it was told to.
    Hangs,
}

impl Trouble {
    /// This listener cannot be served.
    pub(super) fn listening(listen: &listen::Params, error: io::Error) -> Self {
        Self::Socket(listen.door().listener.to_string(), error)
    }

    pub(super) fn code(&self) -> u8 {
        match self {
            Self::Settings(_) => exit::SETTINGS,
            Self::Socket(..) => exit::OUTPUT,
            Self::State(..) | Self::Unsaved(_) => exit::STATE,
            Self::System(..) | Self::Ended(_) => exit::SYSTEM,
            Self::Hangs => exit::UNFINISHED,
        }
    }
}

impl Display for Trouble {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Settings(what) => write!(f, "{what}"),
            Self::Socket(address, error) => write!(f, "cannot listen on {address}: {error}"),
            Self::State(path, refused) => write!(f, "cannot keep state in {path}: {refused}"),
            Self::Unsaved(fault) => write!(f, "state was not saved completely: {fault}"),
            Self::System(what, error) => write!(f, "{what}: {error}"),
            Self::Ended(name) => write!(f, "the thread `{name}` has ended by itself"),
            Self::Hangs => write!(f, "a worker did not end when it was told to"),
        }
    }
}
