//! `postpone check`: can these settings be used, and what do they amount to?

use std::io::{self, Write};
use std::path::Path;

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
/// Mistakes go to `err`; with `print`, the settings in force go to `out` as TOML.
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
            write!(err, "{report}")?;
            settings
        }
        Some(Err(Unusable(report))) => {
            write!(err, "{report}")?;
            return Ok(Verdict::Unusable);
        }
    };
    if print {
        out.write_all(settings.print().as_bytes())?;
    } else if let Some(file) = file {
        writeln!(out, "{}: the settings can be used", file.display())?;
    }
    Ok(Verdict::Usable)
}
