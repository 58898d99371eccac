//! `postpone check`: can these settings be used, and what do they amount to?

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::User;
use rustix::process::geteuid;

use crate::clock::{Clock, SystemClock};
use crate::config::{Checked, Settings, Unusable, host_name, without_dot};
use crate::tool::setup;

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
    if file.is_none() {
        writeln!(err, "no settings file: the built-in settings hold")?;
    }
    let settings = match file.map_or_else(Settings::built_in, Settings::load) {
        Ok(Checked { settings, report, can_be_taken, .. }) => {
            write!(err, "{}", shown(&report))?;
            if let Some(why) = can_be_taken {
                writeln!(err, "warning: {why}")?;
            }
            settings
        }
        Err(Unusable(report)) => {
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
    if let Some(warning) = short_name(&settings) {
        writeln!(err, "warning: {warning}")?;
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

/// A report for standard error: with colours on a terminal that has them, unless NO_COLOR is set
/// (no-color.org).
fn shown(report: &crate::config::read::Report) -> String {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty())
        || std::env::var_os("TERM").is_none_or(|terminal| terminal == "dumb");
    match io::stderr().is_terminal() && !plain {
        true => format!("{report:#}"),
        false => report.to_string(),
    }
}

/// Where no MTA tells replies what this host is called, as the daemon finds out at its start.
fn short_name(settings: &Settings) -> Option<String> {
    if !settings.must_ask_for_the_name() {
        return None;
    }
    let name = setup::host_name().unwrap_or_else(host_name);
    without_dot(&name)
}

/// The user that the packages run the daemon as.
const DAEMON: &str = "postpone";

/// A warning where root may read a file and the daemon may not. The kernel is asked as the daemon's
/// user: permission bits are not all that counts. What the unit closes (`ProtectHome`) is not seen.
fn unreadable(path: &Path) -> Option<String> {
    let user = User::from_name(DAEMON).ok().flatten()?;
    let path = path.canonicalize().unwrap_or_else(|_| path.into());
    let shown = path.display();
    let may = |right: &str, path: &Path| may(&user, right, path);
    match may("-r", &path) {
        Ok(true) => return None,
        Ok(false) => {}
        Err(why) => {
            return Some(format!(
                "warning: {shown}: cannot tell whether the user {DAEMON} may read it: {why}"
            ));
        }
    }
    let mut folders: Vec<_> = path.ancestors().skip(1).collect();
    folders.reverse();
    let closed = folders.into_iter().find(|folder| matches!(may("-x", folder), Ok(false)));
    let through = closed.map(|folder| format!(": it cannot enter {}", folder.display()));
    let through = through.unwrap_or_default();
    Some(format!("warning: {shown}: the user {DAEMON} may not read it{through}"))
}

/// Whether a user has this right to a path, by test(1).
fn may(user: &User, right: &str, path: &Path) -> Result<bool, String> {
    let (uid, gid) = (user.uid.to_string(), user.gid.to_string());
    let asked = Command::new("setpriv")
        .args(["--reuid", &uid, "--regid", &gid, "--init-groups", "test", right])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("setpriv: {error}"))?;
    match asked.status.code() {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => Err(String::from_utf8_lossy(&asked.stderr).trim().to_owned()),
    }
}
