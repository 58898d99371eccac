//! What the end-to-end tests stand on: a private Postfix, the real daemon and a plain SMTP client,
//! all on loopback. Nothing here knows a story; the stories are in `tests/postfix_*.rs`.

// Every test crate that says `mod support;` compiles the whole of it and uses a part; nothing
// outside a test crate could reach it; and what goes wrong in here has to fail the test at once.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::print_stderr)]

pub mod apart;
pub mod daemon;
pub mod debian;
pub mod disk;
pub mod front;
pub mod hang;
pub mod hostclock;
pub mod milter;
pub mod mx;
pub mod oracle;
pub mod policy;
pub mod postfix;
pub mod sendmail;
pub mod smtp;

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::geteuid;

/// How long anything may take before a test gives up. Only a guard: no test asserts that something
/// was quick.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// For a story that only root can play: who is not fails. `packaging/test` runs a program as root that
/// calls it or starts an MTA; the others it runs as whoever asks.
#[track_caller]
pub fn as_root() {
    assert!(geteuid().is_root(), "only root can play this: `make test` has it played by root");
}

/// Waits until `condition` yields a value. It is the only place that polls, for what has no event
/// we could block on: a port that opens, a file that appears, a counter that falls.
pub fn wait_until<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    wait_for(PATIENCE, what, condition)
}

/// The same with another guard, for what takes the kernel that long.
#[allow(clippy::disallowed_methods, reason = "the pause between two looks")]
pub fn wait_for<T>(patience: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let passed = stopwatch();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(passed() < patience, "gave up waiting for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The real time since this call: for a story about a wait, which may end late but never early.
#[allow(clippy::disallowed_methods, reason = "the programs under test run by the real clock")]
pub fn stopwatch() -> impl Fn() -> Duration {
    let started = Instant::now();
    move || started.elapsed()
}

/// A free loopback port for a program that cannot be given port 0. They are taken in turn from
/// below the range the kernel hands to outgoing connections (32768 and up), so that between our
/// asking and the program's binding no client of a test running beside us can take it.
pub fn free_port() -> u16 {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 22_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        // Test processes running at the same time start in different places.
        let turn = std::process::id() * 97 + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = (FIRST + turn % COUNT) as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// A temporary folder, removed with all it holds.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(what: &str) -> Self {
        Self::within(&std::env::temp_dir(), what)
    }

    /// The same in this folder.
    pub fn within(place: &Path, what: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("postpone-{what}-{}-{number}", std::process::id());
        let path = place.join(name);
        fs::create_dir_all(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Folder(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
