//! `postpone check`: can these settings be used, and what do they amount to?

use std::ffi::CString;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{User, getgrouplist};
use rustix::process::geteuid;

use crate::clock::{Clock, SystemClock};
use crate::config::{Checked, Settings, Unusable};

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They can be used; there may have been warnings.
    Usable,
    /// They cannot.
    Unusable,
}

/// Reads the file, or takes the built-in defaults where there is none, and says what is wrong.
/// Mistakes go to `err`; what is in force goes to `out`, with `print` as TOML.
pub fn check(
    file: Option<&Path>,
    print: bool,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Verdict> {
    let settings = match file.map(Settings::load) {
        None => {
            writeln!(err, "no settings file: the built-in defaults hold")?;
            Settings::default()
        }
        Some(Ok(Checked { settings, report, .. })) => {
            write!(err, "{}", shown(&report))?;
            settings
        }
        Some(Err(Unusable(report))) => {
            write!(err, "{}", shown(&report))?;
            return Ok(Verdict::Unusable);
        }
    };
    if geteuid().is_root() {
        for path in file.map(Path::to_owned).into_iter().chain(settings.files()) {
            if let Some(warning) = unreadable(&path) {
                writeln!(err, "{warning}")?;
            }
        }
    }
    if print {
        out.write_all(settings.print().as_bytes())?;
    } else {
        let in_force = settings.would_be_in_force(SystemClock.now());
        let file = file.map_or("built-in".into(), |file| file.display().to_string());
        writeln!(out, "{file}: the settings can be used; {in_force}")?;
    }
    Ok(Verdict::Usable)
}

/// A report for standard error: with colours on a terminal, unless NO_COLOR is set (no-color.org).
fn shown(report: &crate::config::read::Report) -> String {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
    match io::stderr().is_terminal() && !plain {
        true => format!("{report:#}"),
        false => report.to_string(),
    }
}

/// The user that the packages run the daemon as.
const DAEMON: &str = "postpone";

/// A warning where root may read a file and the daemon may not.
fn unreadable(path: &Path) -> Option<String> {
    let user = User::from_name(DAEMON).ok().flatten()?;
    let name = CString::new(user.name.as_str()).ok()?;
    let groups: Vec<u32> =
        getgrouplist(&name, user.gid).ok()?.into_iter().map(|group| group.as_raw()).collect();
    let lacks = |path: &Path, right: u32| {
        fs::metadata(path).is_ok_and(|found| {
            let place = match () {
                () if found.uid() == user.uid.as_raw() => 6,
                () if groups.contains(&found.gid()) => 3,
                () => 0,
            };
            found.mode() >> place & right == 0
        })
    };
    let path = path.canonicalize().unwrap_or_else(|_| path.into());
    let closed: Option<PathBuf> =
        path.ancestors().skip(1).find(|folder| lacks(folder, 1)).map(Path::to_owned);
    let closed = closed.or_else(|| lacks(&path, 4).then(|| path.clone()))?;
    let through = if closed == path {
        String::new()
    } else {
        format!(": {} is closed to it", closed.display())
    };
    Some(format!("warning: {}: the user {DAEMON} may not read it{through}", path.display()))
}
