//! Debian's copyright file, in its machine-readable form:
//! https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

use std::collections::{BTreeMap, BTreeSet};

use super::crates::Crate;

/// Licences that every Debian has in /usr/share/common-licenses.
const COMMON: [(&str, &str); 5] = [
    ("Apache-2.0", "Apache-2.0"),
    ("CC0-1.0", "CC0-1.0"),
    ("GPL-2", "GPL-2"),
    ("GPL-3+", "GPL-3"),
    ("MPL-2.0", "MPL-2.0"),
];

const OURS: &str = "\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: postpone
Comment:
 The program is linked with the crates below, whose sources are not part of this
 package. They are named by the folder that `cargo vendor` would put them into.
 Their own notices are whole in notices.gz beside this one.

Files: *
Copyright: 2026, the authors of postpone
License: GPL-3+

Files: vendor/psl/src/list.rs
Copyright: the contributors of the Public Suffix List
License: MPL-2.0
Comment: Made from https://publicsuffix.org/list/public_suffix_list.dat
";

/// The file.
pub(crate) fn file(linked: &[Crate]) -> String {
    let mut names: BTreeSet<String> = ["GPL-3+", "MPL-2.0"].map(Into::into).into();
    // Those with the same holders and licence share a paragraph.
    let mut paragraphs: BTreeMap<(Vec<String>, String), Vec<String>> = BTreeMap::new();
    for found in linked {
        let licence = expression(&found.licence);
        let single = licence.replace(" and ", " or ").replace(['(', ')', ','], "");
        names.extend(single.split(" or ").map(Into::into));
        paragraphs.entry((holders(found), licence)).or_default().push(files(found));
    }
    let paragraphs = paragraphs.iter().map(|((holders, licence), files)| {
        let (files, holders) = (files.join("\n "), holders.join("\n "));
        format!("\nFiles: {files}\nCopyright: {holders}\nLicense: {licence}\n")
    });
    let licences = names.iter().map(|name| {
        let common = COMMON.iter().find(|(short, _)| short == name);
        let text = common.map_or_else(
            || " The text is in notices.gz beside this one.\n".to_owned(),
            |(_, file)| format!(" The text is in /usr/share/common-licenses/{file} on Debian.\n"),
        );
        format!("\nLicense: {name}\n{text}")
    });
    [OURS.to_owned(), paragraphs.collect(), licences.collect()].concat()
}

/// Where its source would be; blanks would begin another name.
fn files(found: &Crate) -> String {
    let version = found.version.split(',').next().unwrap_or_default();
    let name = found.name.replace("Rust's standard library", "rust-std");
    format!("vendor/{name}-{version}/*")
}

/// An SPDX expression by the short names of this format.
fn expression(licence: &str) -> String {
    let names = [
        ("Apache-2.0 WITH LLVM-exception", "Apache-2.0 with LLVM exception"),
        ("GPL-3.0-or-later", "GPL-3+"),
        ("GPL-2.0-only", "GPL-2"),
        ("LGPL-2.1-or-later", "LGPL-2.1+"),
        ("MIT", "Expat"),
        (" OR ", " or "),
        (" AND ", " and "),
    ];
    names.iter().fold(licence.to_owned(), |text, (spdx, short)| text.replace(spdx, short))
}

/// Who holds the rights, as the licences say it.
fn holders(found: &Crate) -> Vec<String> {
    let lines = found.texts.iter().flat_map(|(_, text)| text.lines()).map(str::trim);
    let holders = lines.filter_map(|line| {
        let rest = line.strip_prefix("Copyright ")?;
        let rest = rest.trim_start_matches(['(', 'c', 'C', ')', '©', ' ']);
        // Not the sentences about copyright, nor the form to be filled in.
        let is_holder =
            rest.starts_with(|c: char| c.is_ascii_digit()) && !rest.contains("Free Software");
        is_holder.then(|| rest.to_owned())
    });
    let holders: BTreeSet<_> = holders.collect();
    match holders.is_empty() {
        true => vec![format!("the authors of {}", found.name)],
        false => holders.into_iter().collect(),
    }
}
