//! What is in the program besides ours: each crate that it is linked with, as cargo knows them, and
//! what the toolchain says of Rust's own library. None may be there without a licence that goes
//! with ours, and the text of it.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::Command;
use std::{env, fs};

use serde_json::Value;

/// A crate in the program.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Crate {
    pub(crate) name: String,
    pub(crate) version: String,
    /// An expression of SPDX.
    pub(crate) licence: String,
    /// Where its source is; empty if it does not say.
    pub(crate) repository: String,
    /// What it says of its licence, whole, by the names of the files.
    pub(crate) texts: Vec<(String, String)>,
}

/// Licences by which something may be part of a program under GPL-3.0-or-later.
const ACCEPTED: [&str; 15] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "GPL-3.0-or-later",
    "ISC",
    "LGPL-3.0-or-later",
    "MIT",
    "MPL-2.0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Those that ask for no copy of themselves.
const WITHOUT_TEXT: [&str; 2] = ["0BSD", "CC0-1.0"];

/// All crates in the program but our own, by name and version, and what is in Rust's library.
pub(crate) fn linked(cargo: &OsStr) -> Result<Vec<Crate>, String> {
    let host = host(cargo)?;
    let metadata = run(Command::new(cargo)
        .args(["metadata", "--locked", "--format-version=1", "--filter-platform", &host])
        .args(["--manifest-path", MANIFEST]))?;
    let metadata: Value = serde_json::from_str(&metadata).map_err(|e| format!("metadata: {e}"))?;
    // The tree knows what development alone asks for; the metadata does not tell it apart.
    let tree = run(Command::new(cargo).args(["tree", "--locked", "--prefix=none"]).args([
        "--edges=normal,no-proc-macro",
        "--format={p}",
        "--target",
        &host,
        "--manifest-path",
        MANIFEST,
    ]))?;
    let mut wanted: BTreeSet<_> = tree.lines().filter_map(name_and_version).collect();
    wanted.remove(&(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION")));
    let packages = metadata["packages"].as_array().ok_or("metadata without packages")?;
    let mut crates = Vec::new();
    for package in packages {
        let text = |key: &str| package[key].as_str().unwrap_or_default();
        if wanted.remove(&(text("name"), text("version"))) {
            crates.push(found(package)?);
        }
    }
    if let Some((name, version)) = wanted.first() {
        return Err(format!("the metadata has no {name} {version}"));
    }
    crates.sort();
    crates.iter().try_for_each(may_be_shipped)?;
    crates.extend(rust_library()?);
    Ok(crates)
}

/// What Rust's library has on other systems only.
const ELSEWHERE: [&str; 11] = [
    "dlmalloc",
    "fortanix",
    "hermit",
    "moto",
    "r-efi",
    "unwinding",
    "vex",
    "wasi",
    "windows",
    "wit-bindgen",
    "xous",
];

const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");

/// `name vVERSION`, and what else cargo says of it.
fn name_and_version(line: &str) -> Option<(&str, &str)> {
    let mut words = line.split(' ');
    Some((words.next()?, words.next()?.strip_prefix('v')?))
}

fn found(package: &Value) -> Result<Crate, String> {
    let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
    let folder = Path::new(package["manifest_path"].as_str().unwrap_or_default()).parent();
    let folder = folder.ok_or("a package without a folder")?;
    Ok(Crate {
        name: text("name"),
        version: text("version"),
        // Older crates write `MIT/Apache-2.0`.
        licence: text("license").replace('/', " OR "),
        repository: text("repository"),
        texts: licence_texts(folder, package["license_file"].as_str())?,
    })
}

/// Its files about its licence, in the order of their names.
fn licence_texts(folder: &Path, named: Option<&str>) -> Result<Vec<(String, String)>, String> {
    let trouble = |error| format!("{}: {error}", folder.display());
    let mut texts = Vec::new();
    for entry in fs::read_dir(folder).map_err(trouble)? {
        let path = entry.map_err(trouble)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let word = name.to_uppercase();
        let about = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];
        let is_one = about.iter().any(|begin| word.starts_with(begin)) || named == Some(&name);
        if is_one && path.is_file() {
            let bytes = fs::read(&path).map_err(trouble)?;
            texts.push((name, plain(&String::from_utf8_lossy(&bytes))));
        }
    }
    texts.sort();
    Ok(texts)
}

/// Lines as we end them, without blanks at their ends and empty lines around.
fn plain(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim_end).collect();
    lines.join("\n").trim_matches('\n').to_owned() + "\n"
}

/// Whether it may be part of what we ship.
pub(crate) fn may_be_shipped(found: &Crate) -> Result<(), String> {
    let Crate { name, version, licence, texts, .. } = found;
    let accepted = choice(licence);
    let needs_text = !accepted.is_some_and(|parts| parts.iter().all(|p| WITHOUT_TEXT.contains(p)));
    match choice(licence) {
        None => Err(format!(
            "{name} {version} is under {licence:?}, which packaging/pages/crates.rs does not know \
             to go with GPL-3.0-or-later"
        )),
        Some(_) if texts.is_empty() && needs_text => Err(format!(
            "{name} {version} is under {licence:?} and ships no file with the text of it"
        )),
        Some(_) => Ok(()),
    }
}

/// The first alternative of an expression that we accept, as the licences that hold together then.
/// `OR` binds weaker than `AND`; of brackets, only those around alternatives occur: `A AND (B OR C)`.
pub(crate) fn choice(licence: &str) -> Option<Vec<&str>> {
    let accepted = |one: &&str| ACCEPTED.contains(one);
    if licence.contains('(') {
        let alternatives = licence.split(" AND ").map(|all| all.trim_matches([' ', '(', ')']));
        return alternatives.map(|all| all.split(" OR ").find(accepted)).collect();
    }
    licence.split(" OR ").find_map(|all| {
        let all: Vec<_> = all.split(" AND ").map(str::trim).collect();
        all.iter().all(accepted).then_some(all)
    })
}

/// Rust's own library and what that is made of, as the toolchain's own page tells it.
fn rust_library() -> Result<Vec<Crate>, String> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
    let sysroot = run(Command::new(&rustc).args(["--print", "sysroot"]))?;
    let version = run(Command::new(&rustc).arg("--version"))?;
    let folder = Path::new(sysroot.trim()).join("share/doc/rust");
    let read = |name: &str| {
        fs::read_to_string(folder.join(name)).map_err(|error| {
            format!(
                "Rust's own library is in the program too, and this toolchain has no notices of \
                 it, as one of rustup has: share/doc/rust/{name}: {error}"
            )
        })
    };
    let library = Crate {
        name: "Rust's standard library".into(),
        version: version.split(' ').nth(1).unwrap_or_default().into(),
        licence: "MIT OR Apache-2.0".into(),
        repository: "https://github.com/rust-lang/rust".into(),
        texts: vec![("Apache-2.0.txt".into(), plain(&read("licenses/Apache-2.0.txt")?))],
    };
    let page = read("COPYRIGHT-library.html")?;
    let mut crates = vec![library];
    crates.extend(page.split("<h3>📦 ").skip(1).filter_map(part_of_library));
    crates.retain(|part| !ELSEWHERE.iter().any(|begin| part.name.starts_with(begin)));
    Ok(crates)
}

/// A crate in Rust's library, from its part of the page.
fn part_of_library(html: &str) -> Option<Crate> {
    let (title, html) = html.split_once("</h3>")?;
    let at = title
        .match_indices('-')
        .find(|(at, _)| title[at + 1..].starts_with(|c: char| c.is_ascii_digit()))?;
    let between = |begin: &str, end: &str| Some(html.split_once(begin)?.1.split_once(end)?.0);
    let texts = html.split("<summary><code>").skip(1).filter_map(|part| {
        let (name, part) = part.split_once("</code>")?;
        let text = part.split_once("<pre>")?.1.split_once("</pre>")?.0;
        Some((unescaped(name), plain(&unescaped(text))))
    });
    Some(Crate {
        name: title[..at.0].into(),
        version: format!("{}, in Rust's standard library", &title[at.0 + 1..]),
        licence: between("<b>License:</b>", "</p>")?.trim().replace('/', " OR "),
        repository: between("<a href=\"", "\"").unwrap_or_default().into(),
        texts: texts.collect(),
    })
}

/// Text of a page; the one that makes it writes these characters by number.
fn unescaped(html: &str) -> String {
    let pairs = [("&#60;", "<"), ("&#62;", ">"), ("&#34;", "\""), ("&#39;", "'"), ("&#38;", "&")];
    pairs.iter().fold(html.to_owned(), |text, (written, meant)| text.replace(written, meant))
}

/// The system that the program is built for here, as cargo names it.
fn host(cargo: &OsStr) -> Result<String, String> {
    let about = run(Command::new(cargo).args(["version", "--verbose"]))?;
    let host = about.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(Into::into).ok_or_else(|| "cargo does not say its host".into())
}

fn run(command: &mut Command) -> Result<String, String> {
    let what = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{what}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{what}: {}", String::from_utf8_lossy(&output.stderr).trim_end()));
    }
    String::from_utf8(output.stdout).map_err(|error| format!("{what}: {error}"))
}
