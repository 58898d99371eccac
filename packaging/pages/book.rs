//! Pages of `docs/` as they stand in a manual page.

use super::markdown::{Piece, pieces};
use super::prose::Block;
use super::roff::{Page, bold, name_of};

/// A page of `docs/`, and the section of the manual that it makes.
pub(crate) struct Chapter {
    /// The section.
    pub(crate) title: &'static str,
    /// The page.
    pub(crate) text: &'static str,
}

pub(crate) const NIGHT: &str = include_str!("../../docs/night.md");

/// Those of postpone(8).
pub(crate) const OF_THE_DAEMON: [Chapter; 3] = [
    Chapter { title: "LOG", text: include_str!("../../docs/log.md") },
    Chapter { title: "UNDER SYSTEMD", text: include_str!("../../docs/systemd.md") },
    Chapter { title: "SECURITY", text: include_str!("../../docs/security.md") },
];

/// postpone-night(7).
pub(crate) fn night(date: &str) -> String {
    let mut page =
        Page::new("postpone-night", 7, date, "what to do when the milter postpone refuses mail");
    page.section("DESCRIPTION");
    // It is read on one screen: a row of the table is a line.
    for piece in pieces(NIGHT) {
        match piece {
            Piece::Headline(..) => {}
            Piece::Table(rows) => {
                page.close_entries(rows[1..].iter().map(|row| (bold(&row[0]), row[1].as_str())));
            }
            other => page.blocks(&[block(other)]),
        }
    }
    page.finish()
}

/// What a page says below its headline.
pub(crate) fn add(page: &mut Page, text: &str) {
    for piece in pieces(text) {
        match piece {
            Piece::Headline(1, _) => {}
            Piece::Headline(_, words) => page.part(&plain(&words)),
            Piece::Table(rows) => {
                for row in &rows[1..] {
                    let (name, says) = row.split_first().expect("a row begins with a name");
                    let named = if name.starts_with('`') { name_of(name) } else { bold(name) };
                    page.entry(&[named], &[Block::Paragraph(sentence(&says.join("; ")))]);
                }
            }
            other => page.blocks(&[block(other)]),
        }
    }
}

fn block(piece: Piece) -> Block {
    match piece {
        Piece::Headline(_, text) | Piece::Paragraph(text) => Block::Paragraph(plain(&text)),
        Piece::List(points) => Block::List(
            points.into_iter().map(|point| point.into_iter().map(block).collect()).collect(),
        ),
        Piece::Code(_, lines) => Block::Example(lines),
        Piece::Table(rows) => Block::Table(
            rows.into_iter()
                .skip(1)
                .map(|row| (row[0].clone(), vec![Block::Paragraph(sentence(&row[1..].join("; ")))]))
                .collect(),
        ),
    }
}

/// A cell, with a capital and a full stop.
fn sentence(text: &str) -> String {
    let text = plain(text);
    let mut rest = text.chars();
    let first = rest.next().map(|first| first.to_uppercase().to_string());
    // What is code has a case of its own.
    let text = first.map_or(String::new(), |first| first + rest.as_str());
    if text.ends_with(['.', '?']) { text } else { text + "." }
}

/// Without what is bold, and with links as what they say.
fn plain(text: &str) -> String {
    let mut text = text.replace("**", "");
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
