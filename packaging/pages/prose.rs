//! Plain text, as comments and help have it, taken apart: paragraphs; lists of `- `; tables, whose
//! lines are a name, two blanks or more, and what is said of it; and examples, which are indented.

/// A piece of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// Lines that are filled.
    Paragraph(String),
    /// Names and what is said of each.
    Table(Vec<(String, Vec<Block>)>),
    /// Points of a list.
    List(Vec<Vec<Block>>),
    /// Lines that stand as they are.
    Example(Vec<String>),
}

/// Takes lines apart that have no mark of a comment any more.
pub(crate) fn blocks(lines: &[&str]) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut rest = lines;
    while let [first, ..] = rest {
        let taken = if first.trim().is_empty() {
            1
        } else if indent(first) > 0 {
            let length = rest.iter().take_while(|line| indent(line) > 0).count();
            blocks.extend(indented(&rest[..length]));
            length
        } else if first.starts_with("- ") {
            let (list, length) = list(rest);
            blocks.push(Block::List(list));
            length
        } else if gap(first).is_some() {
            let (table, length) = table(rest);
            blocks.push(Block::Table(table));
            length
        } else {
            let plain =
                |line: &&&str| indent(line) == 0 && !line.starts_with("- ") && gap(line).is_none();
            let length = rest.iter().take_while(plain).take_while(|line| !line.is_empty()).count();
            blocks.push(Block::Paragraph(rest[..length].join(" ")));
            length
        };
        rest = &rest[taken..];
    }
    blocks
}

/// Indented lines are a table or a list where they look like one, and else an example.
fn indented(lines: &[&str]) -> Vec<Block> {
    let lines = dedented(lines);
    // Two tables side by side are none.
    let is_wide =
        lines.iter().any(|line| line.trim().split("  ").filter(|c| !c.is_empty()).count() > 3);
    let is_made_of_points = lines[0].starts_with("- ");
    if !is_wide && (is_made_of_points || gap(lines[0]).is_some()) {
        return blocks(&lines);
    }
    let end = lines.iter().rposition(|line| !line.is_empty()).map_or(0, |last| last + 1);
    vec![Block::Example(lines[..end].iter().map(|line| (*line).into()).collect())]
}

fn list(lines: &[&str]) -> (Vec<Vec<Block>>, usize) {
    let (mut points, mut at) = (Vec::new(), 0);
    while at < lines.len() && lines[at].starts_with("- ") {
        let length = 1 + lines[at + 1..].iter().take_while(|line| indent(line) > 0).count();
        let point: Vec<_> =
            lines[at..at + length].iter().map(|line| line[2..].trim_start()).collect();
        points.push(blocks(&point));
        at += length;
    }
    (points, at)
}

fn table(lines: &[&str]) -> (Vec<(String, Vec<Block>)>, usize) {
    let (mut rows, mut at) = (Vec::new(), 0);
    while let Some((name, column)) =
        lines.get(at).filter(|line| indent(line) == 0).and_then(|line| gap(line))
    {
        let length = 1 + lines[at + 1..].iter().take_while(|line| indent(line) > 0).count();
        let text: Vec<_> =
            lines[at..at + length].iter().map(|line| from_column(line, column)).collect();
        rows.push((name.into(), blocks(&text)));
        at += length;
    }
    (rows, at)
}

/// What stands at a column; a line that begins before it is taken whole.
fn from_column(line: &str, column: usize) -> &str {
    match line.get(..column) {
        Some(before) if indent(line) >= column || !before.starts_with(' ') => &line[column..],
        _ => line.trim_start(),
    }
}

/// A name at the beginning of a line, and the column of what is said of it.
fn gap(line: &str) -> Option<(&str, usize)> {
    let (name, rest) = line.split_once("  ").filter(|(name, _)| !name.trim().is_empty())?;
    let text = rest.trim_start();
    (!text.is_empty()).then(|| (name, line.len() - text.len()))
}

fn indent(line: &str) -> usize {
    if line.trim().is_empty() { 0 } else { line.len() - line.trim_start().len() }
}

fn dedented<'a>(lines: &[&'a str]) -> Vec<&'a str> {
    let least = lines.iter().filter(|line| !line.is_empty()).map(|line| indent(line)).min();
    lines.iter().map(|line| line.get(least.unwrap_or(0)..).unwrap_or_default()).collect()
}
