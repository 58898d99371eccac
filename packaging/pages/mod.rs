//! What is written, by its name below the folder. Each file here makes one thing.

pub(crate) mod book;
pub(crate) mod completions;
pub(crate) mod copyright;
pub(crate) mod crates;
pub(crate) mod daemon;
pub(crate) mod markdown;
pub(crate) mod notices;
pub(crate) mod prose;
pub(crate) mod roff;
pub(crate) mod settings;
pub(crate) mod tools;

use std::ffi::OsStr;

/// A file: its name and what is in it.
pub(crate) type File = (String, String);

const CHANGELOG: &str = include_str!("../../CHANGELOG.md");

/// Everything. `cargo` is asked what the program is made of.
pub(crate) fn all(cargo: &OsStr) -> Result<Vec<File>, String> {
    let linked = crates::linked(cargo)?;
    let version = postpone::store::folder::VERSION;
    let more = [
        ("copyright".into(), copyright::file(&linked)),
        ("notices".into(), notices::file(&linked)),
        ("state-version".into(), format!("{version}\n")),
    ];
    Ok([manuals()?, completions::files()?, more.into()].concat())
}

/// The manual pages.
pub(crate) fn manuals() -> Result<Vec<File>, String> {
    let date = released()?;
    Ok(vec![
        ("man/postpone.1".into(), tools::page(date)),
        ("man/postpone.8".into(), daemon::page(date)?),
        ("man/postpone.toml.5".into(), settings::page(date)),
        ("man/postpone-night.7".into(), book::night(date)),
    ])
}

/// When the newest release was made: the date of the pages, which no clock has a part in.
fn released() -> Result<&'static str, String> {
    let lines = CHANGELOG.lines().filter_map(|line| line.strip_prefix("## "));
    let release = lines.filter(|line| *line != "Unreleased").find_map(|it| it.split_once(" - "));
    let date = release.map(|(_, date)| date.trim());
    let is_date = |date: &&str| {
        date.len() == 10 && date.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-')
    };
    date.filter(is_date).ok_or_else(|| {
        "CHANGELOG.md: the first release's `## ` line is to end with ` - YYYY-MM-DD`".into()
    })
}
