//! The README and `docs/`: links lead somewhere, tables name all that there is and nothing else, and
//! what is shown to be copied works.

#![allow(clippy::unwrap_used)] // what goes wrong in here has to fail the test

#[path = "../packaging/pages/markdown.rs"]
mod markdown;
mod support;

#[path = "docs/shell.rs"]
mod shell;
#[path = "docs/tables.rs"]
mod tables;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use markdown::{Piece, pieces};
use postpone::config::{Settings, Unusable};
use support::Folder;

fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every page, the README first, with its text.
fn pages_in(root: &Path) -> Vec<(PathBuf, String)> {
    let mut paths: Vec<_> =
        fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.insert(0, root.join("README.md"));
    paths.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

fn page(name: &str) -> String {
    fs::read_to_string(checkout().join("docs").join(name)).unwrap()
}

/// The code of a page between its fences, also what stands in a list: what is behind the fence, and
/// the text.
fn code(text: &str) -> Vec<(String, String)> {
    fn within(pieces: Vec<Piece>, found: &mut Vec<(String, String)>) {
        for piece in pieces {
            match piece {
                Piece::Code(info, lines) => found.push((info, lines.join("\n") + "\n")),
                Piece::List(points) => points.into_iter().for_each(|point| within(point, found)),
                Piece::Headline(..) | Piece::Paragraph(_) | Piece::Table(_) => {}
            }
        }
    }
    let mut found = Vec::new();
    within(pieces(text), &mut found);
    found
}

/// Where the links of a text lead.
fn links(text: &str) -> Vec<&str> {
    let links = text.split("](").skip(1).map(|rest| rest.split_once(')').unwrap().0);
    links.filter(|link| !link.starts_with("https://")).collect()
}

/// A headline as links name it.
fn anchor(words: &str) -> String {
    let kept = words.to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-');
    kept.collect::<String>().replace(' ', "-")
}

#[track_caller]
fn every_link_leads_somewhere(root: &Path) {
    for (path, text) in pages_in(root) {
        for link in links(&text) {
            let (file, part) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => path.clone(),
                file => path.parent().unwrap().join(file),
            };
            assert!(target.exists(), "{}: {link}", path.display());
            let is_there = part.is_empty()
                || pieces(&fs::read_to_string(&target).unwrap()).iter().any(
                    |piece| matches!(piece, Piece::Headline(_, words) if anchor(words) == part),
                );
            assert!(is_there, "{}: no headline {link}", path.display());
        }
    }
}

#[test]
fn every_link_of_the_checkout_leads_somewhere() {
    every_link_leads_somewhere(checkout());
}

/// Examples lie elsewhere there, and the sources do not lie there at all.
#[test]
fn every_link_of_what_is_installed_leads_somewhere() {
    let folder = Folder::new("docs");
    fs::create_dir_all(folder.path().join("pages/man")).unwrap();
    fs::create_dir(folder.path().join("pages/completions")).unwrap();
    for name in ["man/postpone.1", "notices"] {
        folder.write(&format!("pages/{name}"), "");
    }
    for shell in ["postpone", "_postpone", "postpone.fish"] {
        folder.write(&format!("pages/completions/{shell}"), "");
    }
    let output = Command::new(checkout().join("packaging/install"))
        .args([folder.write("program", ""), folder.path().join("pages")])
        .env("DESTDIR", folder.path().join("root"))
        .env("PREFIX", "/usr")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let installed = folder.path().join("root/usr/share/doc/postpone");
    every_link_leads_somewhere(&installed);
}

#[test]
fn the_index_names_every_page() {
    let index = page("index.md");
    let named: BTreeSet<_> = links(&index).into_iter().map(str::to_owned).collect();
    for (path, text) in pages_in(checkout()).into_iter().skip(1) {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(name == "index.md" || named.contains(&name), "{name}");
        assert!(matches!(pieces(&text).first(), Some(Piece::Headline(1, _))), "{name}");
    }
}

#[test]
fn the_front_door_can_be_read_in_a_few_minutes() {
    let readme = fs::read_to_string(checkout().join("README.md")).unwrap();
    assert!(readme.len() < 8_000, "{} bytes", readme.len());
    for line in ["make demo", "make test"] {
        assert!(readme.contains(line), "{line}");
    }
}

#[test]
fn settings_that_are_shown_can_be_used() {
    let mut shown = 0;
    for (path, text) in pages_in(checkout()) {
        for (_, example) in code(&text).into_iter().filter(|(info, _)| info == "toml") {
            match Settings::parse("shown", &example) {
                Ok(checked) if checked.report.is_empty() => shown += 1,
                Ok(checked) => panic!("{}: {}", path.display(), checked.report),
                Err(Unusable(report)) => panic!("{}: {report}", path.display()),
            }
        }
    }
    assert!(shown > 5, "{shown}");
}
