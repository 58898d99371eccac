//! The part of Markdown that `docs/` is written in, taken apart: headlines, paragraphs, lists,
//! tables, and code between fences.

/// A piece of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// How deep it is, from 1, and its words.
    Headline(usize, String),
    /// Lines that are filled.
    Paragraph(String),
    /// Points of a list, with or without numbers.
    List(Vec<Vec<Piece>>),
    /// Rows of a table by their cells, the head first.
    Table(Vec<Vec<String>>),
    /// What stands behind the fence, such as `sh`, and the lines.
    Code(String, Vec<String>),
}

/// Takes a page apart.
pub(crate) fn pieces(text: &str) -> Vec<Piece> {
    let lines: Vec<_> = text.lines().collect();
    let (mut pieces, mut rest) = (Vec::new(), &lines[..]);
    while let Some(first) = rest.first() {
        let taken = if first.trim().is_empty() {
            1
        } else {
            let (piece, taken) = piece(first, rest);
            pieces.push(piece);
            taken
        };
        rest = &rest[taken..];
    }
    pieces
}

/// The piece that begins with this line, and how many lines it takes.
fn piece(first: &str, lines: &[&str]) -> (Piece, usize) {
    let depth = first.len() - first.trim_start_matches('#').len();
    if let Some(info) = first.strip_prefix("```") {
        let code: Vec<_> =
            lines[1..].iter().take_while(|line| **line != "```").map(|l| (*l).into()).collect();
        let length = code.len() + 2;
        return (Piece::Code(info.into(), code), length.min(lines.len()));
    }
    if depth > 0 {
        return (Piece::Headline(depth, first[depth..].trim().into()), 1);
    }
    if first.starts_with('|') {
        let rows = lines.iter().take_while(|line| line.starts_with('|'));
        let length = rows.clone().count();
        let is_rule = |line: &&&str| line.starts_with("|--") || line.starts_with("| --");
        return (
            Piece::Table(rows.filter(|line| !is_rule(line)).map(|l| cells(l)).collect()),
            length,
        );
    }
    if marker(first).is_some() {
        return list(lines);
    }
    let is_text = |line: &&&str| {
        !line.trim().is_empty() && !line.starts_with("```") && !line.starts_with('|')
    };
    let text: Vec<_> = lines.iter().take_while(is_text).map(|line| line.trim()).collect();
    (Piece::Paragraph(text.join(" ")), text.len())
}

fn cells(row: &str) -> Vec<String> {
    let row = row.trim_matches('|');
    row.split(" | ").map(|cell| cell.trim().to_owned()).collect()
}

/// How wide the mark of a point is: `- `, or `12. `.
fn marker(line: &str) -> Option<usize> {
    let digits = line.bytes().take_while(u8::is_ascii_digit).count();
    match digits {
        0 => line.starts_with("- ").then_some(2),
        _ => line[digits..].starts_with(". ").then_some(digits + 2),
    }
}

fn list(lines: &[&str]) -> (Piece, usize) {
    let (mut points, mut at) = (Vec::new(), 0);
    while let Some(width) = lines.get(at).and_then(|line| marker(line)) {
        let within = |line: &&&str| line.trim().is_empty() || line.starts_with(&" ".repeat(width));
        let length = 1 + lines[at + 1..].iter().take_while(within).count();
        let point: Vec<_> =
            lines[at..at + length].iter().map(|line| line.get(width..).unwrap_or("")).collect();
        points.push(pieces(&point.join("\n")));
        at += length;
    }
    (Piece::List(points), at)
}
