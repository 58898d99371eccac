//! A manual page in the macros of man(7).

use super::prose::Block;

/// A page that grows.
pub(crate) struct Page {
    text: String,
    /// Nothing has been said below the last headline yet.
    is_headed: bool,
}

/// Whether text is filled below a name, or stands by itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Section,
    /// Right behind a name, which has its first paragraph beside it.
    Entry,
}

impl Page {
    /// A page with its title, such as `postpone` and 8, and what it is about.
    pub(crate) fn new(name: &str, section: u8, date: &str, about: &str) -> Self {
        let title = name.to_uppercase();
        let version = env!("CARGO_PKG_VERSION");
        let text = format!(
            ".\\\" Made by packaging/pages.rs.\n\
             .TH {title} {section} {date} \"postpone {version}\" \"postpone\"\n"
        );
        let mut page = Self { text, is_headed: false };
        page.section("NAME");
        page.line(&format!("{} \\- {}", literal(name), prose(about)));
        page
    }

    /// What has been written.
    pub(crate) fn finish(self) -> String {
        self.text
    }

    /// Begins a section.
    pub(crate) fn section(&mut self, name: &str) {
        self.line(&format!(".SH \"{}\"", literal(name)));
        self.is_headed = true;
    }

    /// Begins a part of a section.
    pub(crate) fn part(&mut self, name: &str) {
        self.line(&format!(".SS \"{}\"", literal(name)));
        self.is_headed = true;
    }

    /// How commands are written: the words of each, and what follows them as roff.
    pub(crate) fn synopsis(&mut self, commands: &[(String, Vec<String>)]) {
        for (words, arguments) in commands {
            self.line(&format!(".SY \"{}\"", literal(words)));
            // An option and its value stay on one line.
            arguments.iter().for_each(|argument| self.line(&argument.replace(' ', "\\ ")));
        }
        self.line(".YS");
    }

    /// A paragraph of plain text; what stands between backticks becomes bold.
    pub(crate) fn paragraph(&mut self, text: &str) {
        self.blocks(&[Block::Paragraph(text.into())]);
    }

    /// Names, as roff, and what is said of them.
    pub(crate) fn entry(&mut self, names: &[String], text: &[Block]) {
        for (number, name) in names.iter().enumerate() {
            self.line(if number == 0 { ".TP" } else { ".TQ" });
            self.line(name);
        }
        self.all(text, Place::Entry);
    }

    /// Names, as roff, each with what is said of it beside it, and no blank lines between.
    pub(crate) fn close_entries<'a>(&mut self, rows: impl Iterator<Item = (String, &'a str)>) {
        self.line(".PD 0");
        for (name, text) in rows {
            self.line(".TP 26");
            self.line(&name);
            self.filled(&prose(text));
        }
        self.line(".PD");
    }

    /// Pieces of text.
    pub(crate) fn blocks(&mut self, blocks: &[Block]) {
        self.all(blocks, Place::Section);
    }

    fn all(&mut self, blocks: &[Block], place: Place) {
        for (number, block) in blocks.iter().enumerate() {
            match block {
                Block::Paragraph(text) => {
                    match (place, number) {
                        (Place::Section, _) if self.is_headed => {}
                        (Place::Section, _) => self.line(".PP"),
                        (Place::Entry, 0) => {}
                        (Place::Entry, _) => self.line(".IP"),
                    }
                    self.filled(&prose(text));
                }
                Block::Example(lines) => {
                    let (begin, end) = match place {
                        Place::Section if self.is_headed => (".RS 4\n.nf", ".fi\n.RE"),
                        Place::Section => (".PP\n.RS 4\n.nf", ".fi\n.RE"),
                        Place::Entry => (".RS\n.PP\n.nf", ".fi\n.RE"),
                    };
                    self.line(begin);
                    lines.iter().for_each(|line| self.line(&guarded(&literal(line))));
                    self.line(end);
                }
                Block::Table(rows) => self.within(place, |page| {
                    rows.iter().for_each(|(name, text)| page.entry(&[name_of(name)], text));
                }),
                Block::List(points) => self.within(place, |page| {
                    for point in points {
                        page.line(".IP \\(bu 2");
                        page.all(point, Place::Entry);
                    }
                }),
            }
        }
    }

    /// What belongs to an entry and has entries of its own is moved to the right.
    fn within(&mut self, place: Place, write: impl FnOnce(&mut Self)) {
        match place {
            Place::Section => write(self),
            Place::Entry => {
                self.line(".RS");
                write(self);
                self.line(".RE");
            }
        }
    }

    /// Lines no longer than people can read where the page is broken.
    fn filled(&mut self, text: &str) {
        const WIDTH: usize = 78;
        let mut line = String::new();
        for word in text.split_whitespace() {
            if !line.is_empty() && line.len() + 1 + word.len() > WIDTH {
                self.line(&guarded(&line));
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        self.line(&guarded(&line));
    }

    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
        self.is_headed = false;
    }
}

/// A name that something is said of: bold, whether or not it stands between backticks.
pub(crate) fn name_of(text: &str) -> String {
    bold(&text.replace('`', ""))
}

/// Bold and as it is.
pub(crate) fn bold(text: &str) -> String {
    format!("\\fB{}\\fR", literal(text))
}

/// A word that stands for another.
pub(crate) fn italic(text: &str) -> String {
    format!("\\fI{}\\fR", literal(text))
}

/// Text that is typed or printed: every character is what it is.
pub(crate) fn literal(text: &str) -> String {
    text.chars().map(|c| character(c, true)).collect()
}

/// Text that is read. What stands between backticks is bold and as it is.
fn prose(text: &str) -> String {
    let mut out = String::new();
    for (number, piece) in text.split('`').enumerate() {
        if number % 2 == 1 {
            out += &bold(piece);
            continue;
        }
        let mut before = ' ';
        let mut rest = piece.chars().peekable();
        while let Some(c) = rest.next() {
            // Between letters it joins words; elsewhere it is typed, or a minus.
            let joins = before.is_alphabetic() && rest.peek().is_some_and(|c| c.is_alphabetic());
            out += &character(c, c == '-' && !joins);
            before = c;
        }
    }
    out
}

fn character(c: char, as_it_is: bool) -> String {
    match c {
        '\\' => "\\e".into(),
        '\'' => "\\(aq".into(),
        '"' => "\\(dq".into(),
        '`' => "\\(ga".into(),
        '^' => "\\(ha".into(),
        '~' => "\\(ti".into(),
        '-' if as_it_is => "\\-".into(),
        c if c.is_ascii() => c.into(),
        c => format!("\\[u{:04X}]", u32::from(c)),
    }
}

/// A line of text that begins with a dot is no request.
fn guarded(line: &str) -> String {
    if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.into() }
}
