//! What is made while the daemon may still do everything: its sockets, with their owners, and the
//! policy, whose lists may be closed to us afterwards. Nothing is served yet.

use std::net::TcpListener;
use std::sync::Arc;

use tokio::runtime;
use tracing::warn;

use super::sampler::postfix;
use super::state::State;
use super::trouble::Trouble;
use crate::clock::SystemClock;
use crate::config::{Control, Named, Settings, host_name, without_dot};
use crate::engine::Engine;
use crate::front::address::Address;
use crate::front::listener::{Bound, Stack};
use crate::front::packaged::is_packaged;
use crate::front::passed::Passed;
use crate::front::socket_file::SocketFile;
use crate::front::{control, http, listen};
use crate::policy::Memory;
use crate::setting::OrNone;

/// Sockets, taken and not used yet.
pub(super) struct Prepared {
    /// What is served.
    pub(super) sockets: Vec<Socket>,
    /// Where metrics are asked for.
    pub(super) metrics: Option<TcpListener>,
    /// Where `postpone ctl` asks.
    pub(super) control: Option<control::Socket>,
    /// Files of unix sockets that are ours, and so are removed at the end.
    pub(super) files: Vec<SocketFile>,
    /// What the MTA calls this host, where it has to be asked and says so.
    pub(super) called: Option<String>,
}

/// A bound socket and its section.
pub(super) struct Socket {
    /// The socket.
    pub(super) bound: Bound,
    /// What is said of it.
    pub(super) listen: listen::Params,
    /// Whether the service manager has bound it, and keeps it.
    pub(super) passed: bool,
}

impl Socket {
    /// From now on who connects waits to be served. What the service manager has bound has listened
    /// all the time.
    pub(super) fn listen(&self) -> Result<(), Trouble> {
        let listening = if self.passed { Ok(()) } else { self.bound.listen() };
        listening.map_err(|error| Trouble::listening(&self.listen, error))
    }
}

/// What is to be told once there is a log: its writer is a thread.
#[derive(Default)]
pub(super) struct Notes(Vec<Box<dyn FnOnce()>>);

impl Notes {
    pub(super) fn take(&mut self, note: impl FnOnce() + 'static) {
        self.0.push(Box::new(note));
    }

    /// Tells all of it.
    pub(super) fn tell(self) {
        self.0.into_iter().for_each(|note| note());
    }
}

impl Prepared {
    /// Takes all that the settings name.
    pub(super) fn new(
        settings: &Settings,
        named: Named,
        notes: &mut Notes,
    ) -> Result<Self, Trouble> {
        let mut files = Vec::new();
        let sockets = bind(settings, &mut files, notes)?;
        if named.listen
            && let Some(why) = settings.can_be_taken(|address| is_passed(&sockets, address))
        {
            notes.take(move || warn!("{why}"));
        }
        let metrics = bind_metrics(&settings.control, named, notes)?;
        let control = bind_control(&settings.control, named, notes)?;
        if let (Some(_), OrNone::Some(socket)) = (&control, &settings.control.socket) {
            files.extend(SocketFile::bound_at(socket.path()));
        }
        let called = ask_for_the_name(settings, notes);
        Ok(Self { sockets, metrics, control, files, called })
    }
}

/// What the service manager has passed on is taken, the rest is bound.
fn bind(
    settings: &Settings,
    files: &mut Vec<SocketFile>,
    notes: &mut Notes,
) -> Result<Vec<Socket>, Trouble> {
    let (mut passed, strange) = Passed::receive();
    for what in strange {
        notes.take(move || {
            warn!(
                "the service manager passed a socket that cannot be served: \
                                  {what}"
            )
        });
    }
    let take = |listen: &listen::Params| listen.address().and_then(|(at, _)| passed.take(at));
    let given: Vec<_> = settings.listen.iter().map(take).collect();
    // Told before anything is bound: it may well be why that fails. The packages' own sockets are
    // held whatever the settings name.
    for address in passed.left().into_iter().filter(|address| !is_packaged(address)) {
        notes.take(move || {
            warn!(
                address,
                "the service manager passed a socket that no [[listen]] names: it is closed"
            );
        });
    }
    drop(passed);
    let mut sockets = Vec::new();
    for (listen, given) in settings.listen.iter().zip(given) {
        let passed = given.is_some();
        let bound = given.map_or_else(|| listen.bind(&settings.listen), Ok);
        let bound = bound.map_err(|error| Trouble::listening(listen, error))?;
        if let (false, Some((Address::Unix(path), _))) = (passed, listen.address()) {
            files.extend(SocketFile::bound_at(path));
        }
        sockets.push(Socket { bound, listen: listen.clone(), passed });
    }
    Ok(sockets)
}

fn is_passed(sockets: &[Socket], address: &Address) -> bool {
    sockets.iter().any(|socket| {
        socket.passed && socket.listen.address().is_some_and(|(passed, _)| passed == address)
    })
}

fn bind_metrics(
    control: &Control,
    named: Named,
    notes: &mut Notes,
) -> Result<Option<TcpListener>, Trouble> {
    let OrNone::Some(address) = control.http else { return Ok(None) };
    match http::bind(address) {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if !named.http => {
            notes.take(move || {
                warn!(http = %address, %error, "no metrics: the default address cannot be opened");
            });
            Ok(None)
        }
        Err(error) => Err(Trouble::Socket(format!("control.http {address}"), error)),
    }
}

fn bind_control(
    control: &Control,
    named: Named,
    notes: &mut Notes,
) -> Result<Option<control::Socket>, Trouble> {
    let OrNone::Some(socket) = control.socket.clone() else { return Ok(None) };
    let path = socket.path();
    let bound = Bound::bind(&Address::Unix(path.into()), Stack::Both, &control.ownership());
    match bound.and_then(|bound| control::Socket::new(bound, path)) {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if !named.socket => {
            notes.take(move || {
                warn!(%socket, %error, "no control: the default socket cannot be opened");
            });
            Ok(None)
        }
        Err(error) => Err(Trouble::Socket(format!("control.socket {socket}"), error)),
    }
}

/// Where no MTA tells a session what it calls this host, Postfix is asked, once, while programs may
/// still be run.
fn ask_for_the_name(settings: &Settings, notes: &mut Notes) -> Option<String> {
    if !settings.must_ask_for_the_name() {
        return None;
    }
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let asked = runtime.map_err(|error| error.to_string());
    let asked = asked.and_then(|runtime| runtime.block_on(postfix::host_name()));
    let (name, why) = match &asked {
        Ok(name) => (name.clone(), None),
        Err(why) => (host_name(), Some(why.clone())),
    };
    if let Some(warning) = without_dot(&name) {
        notes.take(move || warn!(name, why, "{warning}"));
    }
    asked.ok()
}

/// The policy of the settings, with the lists that they name, and memory with the keys of this state.
pub(super) fn build(
    settings: &Settings,
    state: &State,
    called: Option<&str>,
) -> Result<Arc<Engine>, Trouble> {
    let secret = state.secret();
    let (secret, begun) = secret.map_err(|why| Trouble::System("no random numbers", why))?;
    let memory = Memory::new(&secret, settings.bounds());
    memory.behaviour.begun(begun);
    match settings.policy(&memory) {
        Ok(policy) => {
            let engine = Engine::new(Box::new(SystemClock), memory, policy);
            called.inspect(|name| engine.called(name));
            Ok(engine)
        }
        Err(complaints) => {
            let messages: Vec<_> = complaints.into_iter().map(|c| c.message).collect();
            Err(Trouble::Settings(messages.join("; ")))
        }
    }
}
