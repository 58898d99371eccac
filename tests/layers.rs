//! Holds the house together: a module uses only modules of a lower rank, and from an event to its
//! answer nothing knows a file, a socket, a task or the system's clock. `src/lib.rs` draws the map.
//!
//! The sources are read as text, as far as is needed: without comments, literals and tests.

#[path = "layers/source.rs"]
mod source;

use source::{Module, tokens};
use std::fs;
use std::path::Path;

/// Modules of the crate by rank. One of the same rank is as forbidden as one above.
const RANKS: &[(&str, u8)] = &[
    ("clock", 0),
    ("exit", 0),
    ("setting", 0),
    ("smtp", 1),
    ("meter", 1),
    ("policy", 2),
    ("telemetry", 3),
    ("engine", 4),
    ("store", 5),
    ("front", 5),
    ("config", 6),
    ("daemon", 7),
    ("tool", 7),
    ("main", 8),
];

/// Up to this rank everything is synchronous and knows neither files nor sockets.
const PURE: u8 = 4;

/// What gives away that a file, a socket or a task is used. Names of addresses and paths do not.
const IMPURE: &[&str] = &[
    "tokio",
    "indymilter",
    "hyper",
    "rustix",
    "fs",
    "File::",
    "OpenOptions",
    "TcpListener",
    "TcpStream",
    "UdpSocket",
    "UnixListener",
    "UnixStream",
    "UnixDatagram",
    "thread",
    "spawn",
];

/// What only one file may name, and why.
const RESERVED: &[(&str, &str, &str)] = &[
    ("SystemTime", "clock.rs", "everywhere else `now` is an argument"),
    ("Instant", "clock.rs", "everywhere else `now` is an argument"),
    ("hashbrown", "meter/", "a map's guards never leave their file"),
];

fn rank(module: &str) -> Option<u8> {
    RANKS.iter().find(|(name, _)| *name == module).map(|(_, rank)| *rank)
}

/// What is wrong with one file; `path` is its place below `src`.
fn violations(path: &str, text: &str) -> Vec<String> {
    let module = Module::of(path);
    // The list of modules belongs to none of them.
    if module.name() == "lib" {
        return Vec::new();
    }
    let Some(own) = rank(module.name()) else {
        return vec![format!("{path}: `{}` has no rank in tests/layers.rs", module.name())];
    };
    let tokens = tokens(text);
    let mut found = Vec::new();
    for used in module.uses(&tokens) {
        match rank(&used) {
            None => found.push(format!("{path}: uses `{used}`, which has no rank")),
            Some(other) if used != module.name() && other >= own => {
                found.push(format!("{path}: rank {own} uses `{used}`, which has rank {other}"));
            }
            Some(_) => {}
        }
    }
    let names = |word: &str| match word.strip_suffix("::") {
        Some(word) => tokens.windows(2).any(|pair| pair[0] == word && pair[1] == "::"),
        None => tokens.iter().any(|token| token == word),
    };
    // The one reader of the system's clocks, of which the standard library does not know all.
    let reads = |word: &str| path == "clock.rs" && word == "rustix";
    for word in IMPURE.iter().filter(|word| own <= PURE && names(word) && !reads(word)) {
        found.push(format!("{path}: rank {own} names `{word}`"));
    }
    for (word, home, why) in
        RESERVED.iter().filter(|(word, home, _)| !path.starts_with(home) && names(word))
    {
        found.push(format!("{path}: only {home} names `{word}`: {why}"));
    }
    found
}

#[test]
fn a_module_uses_only_lower_ones() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut files, mut folders) = (Vec::new(), vec![root.clone()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let list = if path.is_dir() { &mut folders } else { &mut files };
            list.push(path);
        }
    }
    // A test of its own may use what it likes.
    files.retain(|path| path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs"));
    assert!(files.len() > RANKS.len(), "the sources are in {}", root.display());
    let found: Vec<_> = files
        .iter()
        .flat_map(|path| {
            let text = fs::read_to_string(path).unwrap();
            violations(path.strip_prefix(&root).unwrap().to_str().unwrap(), &text)
        })
        .collect();
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn what_breaks_the_rule_is_noticed_however_it_is_written() {
    for (path, text, expected) in [
        ("policy/limit.rs", "use crate::telemetry::Told;", "rank 2 uses `telemetry`"),
        ("policy/limit.rs", "use crate::{clock::Time, engine};", "rank 2 uses `engine`"),
        ("policy/limit.rs", "use crate::{clock::{self, Time}, front};", "rank 2 uses `front`"),
        ("policy/limit.rs", "use super::super::engine::Engine;", "rank 2 uses `engine`"),
        ("policy/mod.rs", "use super::engine::Engine;", "rank 2 uses `engine`"),
        ("engine.rs", "fn f() { crate::front::http::f() }", "rank 4 uses `front`"),
        ("engine.rs", "type F = super::config::Settings;", "rank 4 uses `config`"),
        ("smtp/reply.rs", "use crate::meter::units::Span;", "rank 1 uses `meter`"),
        ("daemon/mod.rs", "use crate::tool;", "rank 7 uses `tool`"),
        ("main.rs", "use postpone::shiny::New;", "uses `shiny`, which has no rank"),
        ("shiny.rs", "", "`shiny` has no rank"),
        ("policy/access.rs", "use std::fs;", "rank 2 names `fs`"),
        ("policy/access.rs", "let f = File::open(p);", "rank 2 names `File::`"),
        ("engine.rs", "use std::net::{IpAddr, TcpStream};", "rank 4 names `TcpStream`"),
        ("engine.rs", "std::thread::spawn(f);", "rank 4 names `spawn`"),
        ("telemetry.rs", "use tokio::sync::watch;", "rank 3 names `tokio`"),
        ("front/http.rs", "SystemTime::now();", "only clock.rs names `SystemTime`"),
        ("policy/greylist.rs", "use hashbrown::HashTable;", "only meter/ names `hashbrown`"),
        ("engine.rs", "let q = '\"'; use crate::tool; let r = '\"';", "rank 4 uses `tool`"),
        ("engine.rs", "fn f<'a>(x: &'a str) { crate::tool::f() }", "rank 4 uses `tool`"),
        ("engine.rs", "#[cfg(test)] mod tests; use crate::tool;", "rank 4 uses `tool`"),
        ("engine.rs", "#[cfg(test)] use x::Y; use crate::tool;", "rank 4 uses `tool`"),
        ("engine.rs", "#[cfg(test)] fn f() {} use crate::tool;", "rank 4 uses `tool`"),
    ] {
        let found = violations(path, text);
        assert!(found.iter().any(|line| line.contains(expected)), "{path} {text:?}: {found:?}");
    }
}

#[test]
fn what_keeps_the_rule_is_left_alone() {
    for (path, text) in [
        ("policy/limit.rs", "use super::Bounds; use super::signal::Round; use crate::clock::Time;"),
        ("policy/limit.rs", "// crate::engine\n/* crate::front /* tokio */ */ /// fs"),
        ("policy/limit.rs", r##"const T: &str = "crate::engine"; const U: &str = r#"tokio "#;"##),
        ("policy/limit.rs", "#[cfg(test)] mod tests { use crate::engine::Engine; fn f() { {} } }"),
        ("policy/access.rs", "use std::net::{IpAddr, SocketAddr}; let e = Entry::File(path);"),
        ("engine.rs", "pub(crate) fn f() {} use crate::{clock, policy::{Policy, decision}};"),
        ("engine.rs", "mod names { fn f() { super::own() } } #[cfg(test)] mod tests;"),
        ("main.rs", "use postpone::{config::Settings, daemon, tool::check};"),
        ("daemon/mod.rs", "std::thread::spawn(f); use std::fs::File; use crate::config;"),
        ("lib.rs", "pub mod clock; pub mod tool;"),
    ] {
        assert_eq!(violations(path, text), [""; 0], "{path} {text:?}");
    }
}
