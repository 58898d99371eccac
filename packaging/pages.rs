//! Writes what is shipped beside the program as text, from what the program itself is made of: the
//! command line, the reference settings, pages of `docs/`, the list of crates. The same commit gives the
//! same bytes.
//!
//!     cargo run --locked --example pages OUTDIR
//!
//! - `man/postpone.1`, `man/postpone.8`, `man/postpone.toml.5`, `man/postpone-night.7`
//! - `completions/postpone` for bash, `completions/_postpone` for zsh, `completions/postpone.fish`
//! - `copyright`, in Debian's machine-readable form, and `notices`, the licences of all crates that
//!   are in the program
//! - `state-version`, the version of the state that the program writes

#[path = "pages/mod.rs"]
mod pages;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs, io};

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let written = match (arguments.next(), arguments.next()) {
        (Some(to), None) if !to.is_empty() => write(&PathBuf::from(to)),
        _ => Err("usage: pages OUTDIR".into()),
    };
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            let _ = writeln!(io::stderr(), "pages: {what}");
            ExitCode::FAILURE
        }
    }
}

fn write(to: &Path) -> Result<(), String> {
    // `cargo run` says which cargo it is.
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    for (name, text) in pages::all(&cargo)? {
        let path = to.join(name);
        let folder = path.parent().unwrap_or(to);
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&path, text))
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}
