//! postpone.toml(5): the reference settings, as their own comments explain them.
//!
//! The file is read by the convention that its first comment tells: `#key = value` is a default,
//! `##` an example, a comment explains the settings right below it, and two empty lines stand
//! before each section.

use super::prose::{self, Block};
use super::roff::{Page, bold, literal};

const REFERENCE: &str = include_str!("../../conf/postpone.toml");

/// What `apropos` finds it by.
const ABOUT: &str = "settings of the milter postpone: rate limits, greylisting, load";

/// A whole file that is in use as it is: `tests/policies.rs` holds it.
const WHOLE: &str = include_str!("../../conf/small-site.toml");

/// A comment, or settings; an empty line ends either.
#[derive(Debug)]
enum Piece {
    Comment(Vec<&'static str>),
    Settings(Vec<Setting>),
    Gap,
}

/// A line that is a setting.
#[derive(Clone, Copy, Debug)]
struct Setting {
    line: &'static str,
    /// The line without what makes it a comment.
    text: &'static str,
}

impl Setting {
    fn of(line: &'static str) -> Option<Self> {
        let text = line.trim_start_matches('#');
        let is_setting = !text.is_empty() && !text.starts_with(' ');
        is_setting.then_some(Self { line, text })
    }

    /// The section that begins with it, if one does.
    fn section(&self) -> Option<&'static str> {
        self.text.starts_with('[').then(|| self.text.trim_matches(['[', ']']))
    }

    /// A key with its default, or with what may stand there.
    fn name(&self) -> String {
        match self.text.split_once(" = ") {
            Some((key, value)) => {
                let unset = if self.line.starts_with("##") { "   (unset)" } else { "" };
                format!("{} = {}{unset}", bold(key), literal(value))
            }
            None => bold(self.text),
        }
    }
}

/// The page.
pub(crate) fn page(date: &str) -> String {
    let mut page = Page::new("postpone.toml", 5, date, ABOUT);
    page.section("SYNOPSIS");
    page.paragraph("`/etc/postpone/postpone.toml`");
    page.section("DESCRIPTION");
    page.paragraph(
        "Below, a key stands with its default; where it says (unset), it has none, and the value is \
         an example. What is shown with `#` and `##` stands so in the file that is installed, which \
         begins:",
    );
    let pieces = pieces();
    let mut writing = Writing { page, begun: Vec::new() };
    for (number, piece) in pieces.iter().enumerate() {
        let before = number.checked_sub(1).map(|before| &pieces[before]);
        match (piece, before) {
            (Piece::Settings(settings), Some(Piece::Comment(lines))) => {
                writing.settings(settings, &prose::blocks(lines));
            }
            (Piece::Settings(settings), _) => writing.settings(settings, &[]),
            // One right above settings is written with them.
            (Piece::Comment(lines), _) => {
                if !matches!(pieces.get(number + 1), Some(Piece::Settings(_))) {
                    writing.comment(lines, &pieces[number..]);
                }
            }
            (Piece::Gap, _) => {}
        }
    }
    let mut page = writing.page;
    page.section("EXAMPLE");
    page.paragraph(
        "A whole file: the policy for the one mail server of a small company, which is installed with \
         its reasons among the examples, as `small-site.toml`.",
    );
    page.blocks(&[Block::Example(example())]);
    page.section("SEE ALSO");
    page.paragraph("`postpone`(1), `postpone`(8)");
    page.finish()
}

/// The example without its comments, its parts one empty line apart.
fn example() -> Vec<String> {
    let settings = WHOLE.lines().filter(|line| !line.starts_with('#')).map(ToOwned::to_owned);
    let mut lines: Vec<String> = settings.collect();
    lines.dedup_by(|line, before| line.is_empty() && before.is_empty());
    lines.into_iter().skip_while(String::is_empty).collect()
}

/// The file in pieces.
fn pieces() -> Vec<Piece> {
    let mut pieces = Vec::new();
    for line in REFERENCE.lines() {
        match (Setting::of(line), pieces.last_mut()) {
            (Some(setting), Some(Piece::Settings(settings))) => settings.push(setting),
            (Some(setting), _) => pieces.push(Piece::Settings(vec![setting])),
            (None, _) if line.is_empty() => pieces.push(Piece::Gap),
            (None, last) => {
                let text = line.strip_prefix("# ").or(line.strip_prefix('#')).unwrap_or(line);
                match last {
                    Some(Piece::Comment(lines)) => lines.push(text),
                    _ => pieces.push(Piece::Comment(vec![text])),
                }
            }
        }
    }
    pieces
}

/// The page as far as it is written.
struct Writing {
    page: Page,
    /// Sections that have a headline.
    begun: Vec<&'static str>,
}

impl Writing {
    /// A comment that stands alone. `rest` begins with it: where the next settings are those of a
    /// new section, and no two empty lines stand between, it belongs to that.
    fn comment(&mut self, lines: &[&str], rest: &[Piece]) {
        let before_settings = rest.split(|piece| matches!(piece, Piece::Settings(_))).next();
        let is_apart = |pair: &[Piece]| matches!(pair, [Piece::Gap, Piece::Gap]);
        if !before_settings.is_some_and(|pieces| pieces.windows(2).any(is_apart)) {
            let next = rest.iter().find_map(|piece| match piece {
                Piece::Settings(settings) => settings.first(),
                _ => None,
            });
            if let Some(setting) = next {
                self.begin(setting);
            }
        }
        self.page.blocks(&prose::blocks(lines));
    }

    /// Settings with the comment above them. Keys that have one become entries; where a whole
    /// section is shown, it stands as in the file.
    fn settings(&mut self, settings: &[Setting], comment: &[Block]) {
        let [first, keys @ ..] = settings else { return };
        let is_new = self.begin(first);
        let is_mixed = settings.iter().any(|setting| setting.section().is_some());
        if !is_mixed && !comment.is_empty() {
            // A comment that tells values apart is about a single key.
            let is_for_one = comment.iter().any(|block| matches!(block, Block::Table(_)));
            let (told, others) = settings.split_at(if is_for_one { 1 } else { settings.len() });
            let names: Vec<_> = told.iter().map(Setting::name).collect();
            self.page.entry(&names, comment);
            return self.as_in_the_file(others);
        }
        self.page.blocks(comment);
        // The headline says it already, unless it is that of one of several.
        let is_said = is_new && (keys.is_empty() || !first.text.starts_with("[["));
        self.as_in_the_file(if is_said { keys } else { settings });
        // A section whose keys come one by one.
        if let Some(last) = keys.last() {
            self.begin(last);
        }
    }

    /// Whether a section begins here that has no headline yet; it has one now.
    fn begin(&mut self, setting: &Setting) -> bool {
        let is_new = |section: &&str| !self.begun.contains(section);
        let Some(section) = setting.section().filter(is_new) else { return false };
        self.begun.push(section);
        if section.contains('.') {
            self.page.part(setting.text);
        } else {
            self.page.section(setting.text);
        }
        true
    }

    fn as_in_the_file(&mut self, settings: &[Setting]) {
        if !settings.is_empty() {
            let lines = settings.iter().map(|setting| setting.line.into()).collect();
            self.page.blocks(&[Block::Example(lines)]);
        }
    }
}
