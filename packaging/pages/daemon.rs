//! postpone(8): the daemon. What a line of the log says, what to do at night and what to guard is told
//! by the README, and taken from there.

use clap::CommandFactory;
use postpone::tool::command::Cli;
use postpone::tool::manual::{Entry, FILES, SERVE_EXITS, SIGNALS, VARIABLES};

use super::prose::Block;
use super::roff::{Page, bold, italic, name_of};
use super::tools::about_text;

const README: &str = include_str!("../../README.md");

/// The page.
pub(crate) fn page(date: &str) -> Result<String, String> {
    let about = "milter and Postfix policy service: rate limit, greylist and defer incoming mail";
    let mut page = Page::new("postpone", 8, date, about);
    page.section("SYNOPSIS");
    let config = format!("[{} {}]", bold("--config"), italic("FILE"));
    page.synopsis(&[("postpone serve".into(), vec![config])]);
    page.section("DESCRIPTION");
    let mut cli = Cli::command();
    let serve = cli.find_subcommand_mut("serve").ok_or("there is no `serve`")?;
    page.blocks(&about_text(serve));
    page.paragraph("What the settings can say is in postpone.toml(5).");
    page.section("SIGNALS");
    page.all_of(SIGNALS, bold);
    page.section("EXIT STATUS");
    for exit in SERVE_EXITS {
        page.entry(&[bold(&exit.code.to_string())], &[Block::Paragraph(exit.text.into())]);
    }
    page.section("FILES");
    page.all_of(FILES, italic);
    page.section("ENVIRONMENT");
    page.all_of(VARIABLES, bold);
    for (title, headline, named) in [
        ("LOG", "Reading a line of the log", name_of as fn(&str) -> String),
        ("WHEN SOMETHING IS WRONG", "When it is 3 a.m.", bold),
        ("UNDER SYSTEMD", "Under systemd", bold),
        ("SECURITY", "Security", bold),
    ] {
        page.section(title);
        for block in chapter(headline)? {
            match block {
                Piece::Row(name, text) => page.entry(&[named(&name)], &[Block::Paragraph(text)]),
                Piece::Text(block) => page.blocks(&[block]),
            }
        }
    }
    page.section("SEE ALSO");
    page.paragraph("`postpone`(1), `postpone.toml`(5), `postconf`(5), `journalctl`(1)");
    page.paragraph(
        "The README in /usr/share/doc/postpone tells how to begin, what senders make of each reply, \
         and what every metric means.",
    );
    Ok(page.finish())
}

impl Page {
    fn all_of(&mut self, entries: &[Entry], written: fn(&str) -> String) {
        for entry in entries {
            self.entry(&[written(entry.name)], &[Block::Paragraph(entry.text.into())]);
        }
    }
}

/// What a chapter of the README is made of.
enum Piece {
    /// A row of a table of two columns: what is named, and what is said of it.
    Row(String, String),
    Text(Block),
}

/// A chapter of the README, up to the next one or to what is below it.
fn chapter(headline: &str) -> Result<Vec<Piece>, String> {
    let missing = || format!("README.md has no `## {headline}`");
    let (_, text) = README.split_once(&format!("\n## {headline}\n")).ok_or_else(missing)?;
    let text = text.split("\n## ").next().unwrap_or(text);
    let text = text.split("\n### ").next().unwrap_or(text);
    let paragraphs = text.split("\n\n").map(|text| text.trim_matches('\n'));
    let pieces =
        paragraphs.filter(|text| !text.is_empty()).flat_map(|text| match text.chars().next() {
            Some('|') => text.lines().filter_map(row).collect(),
            _ => vec![Piece::Text(block(text))],
        });
    Ok(pieces.collect())
}

/// A row; the head of a table and the rule below it name nothing.
fn row(line: &str) -> Option<Piece> {
    let (name, text) = line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | ")?;
    let is_row = !name.starts_with("---") && name != "field";
    is_row.then(|| Piece::Row(name.into(), capital(&plain(text))))
}

fn capital(text: &str) -> String {
    let mut rest = text.chars();
    let first = rest.next().map(|first| first.to_uppercase().to_string());
    // What is code has a case of its own.
    let text = first.map_or(String::new(), |first| first + rest.as_str());
    if text.ends_with(['.', '?']) { text } else { text + "." }
}

/// A paragraph, or what is indented by four: an example.
fn block(text: &str) -> Block {
    match text.strip_prefix("    ") {
        Some(_) => Block::Example(
            text.lines().map(|line| line.strip_prefix("    ").unwrap_or(line).into()).collect(),
        ),
        None => Block::Paragraph(plain(text)),
    }
}

/// Without what is bold, and with links as what they say.
fn plain(text: &str) -> String {
    let mut text = text.replace("**", "").replace('\n', " ");
    while let Some((label, after)) = text.split_once("](") {
        let (Some((before, label)), Some((_, after))) =
            (label.rsplit_once('['), after.split_once(')'))
        else {
            break;
        };
        text = format!("{before}{label}{after}");
    }
    text
}
