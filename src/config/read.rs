//! Reads TOML so that every independent mistake is found in one go, each with its place.
//!
//! serde stops at its first error. So each section, and each entry of a list, is read by itself;
//! and within one, the key that failed is taken out and the rest read again.

use std::borrow::Cow;
use std::fmt::{self, Display, Formatter};
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue, ValueDeserializer};

use super::words::{did_you_mean, in_words};
use crate::setting::{Complaint, Severity, Step};

/// Something wrong in a settings file.
#[derive(Clone, Debug)]
pub struct Problem {
    severity: Severity,
    /// Where, as bytes of the text; nowhere for the file as a whole.
    span: Option<Range<usize>>,
    /// The key, with its section: `greylist.delay`; empty where there is none.
    key: String,
    message: String,
}

impl Problem {
    /// An error that concerns the file as a whole.
    pub fn whole_file(message: String) -> Self {
        Self { severity: Severity::Error, span: None, key: String::new(), message }
    }
}

/// Reads the parts of one text and gathers what is wrong with them.
pub struct Reader<'a> {
    text: &'a str,
    problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    /// Begins with a text; what is no TOML in it is noted.
    pub fn open(text: &'a str) -> (Self, DeTable<'a>) {
        let (root, errors) = DeTable::parse_recoverable(text);
        let problems = errors.iter().map(|error| Problem {
            severity: Severity::Error,
            span: error.span(),
            key: String::new(),
            message: error.message().into(),
        });
        (Self { text, problems: problems.collect() }, root.into_inner())
    }

    /// Reads `[name]`; its default if it is missing or of no use.
    pub fn section<T: DeserializeOwned + Default>(
        &mut self,
        root: &mut DeTable<'a>,
        name: &str,
        check: impl FnOnce(&T) -> Vec<Complaint>,
    ) -> T {
        let value = root.remove(name);
        value.and_then(|value| self.value(value, name, check)).unwrap_or_default()
    }

    /// Reads every `[[name]]`; nothing if there is none, an empty list for `name = []`.
    pub fn list<T: DeserializeOwned>(
        &mut self,
        root: &mut DeTable<'a>,
        name: &str,
        mut check: impl FnMut(&T) -> Vec<Complaint>,
    ) -> Option<Vec<T>> {
        let value = root.remove(name)?;
        let span = value.span();
        let DeValue::Array(entries) = value.into_inner() else {
            let message = format!("expected `[[{name}]]`, once for each");
            self.note(Severity::Error, Some(span), name.into(), message);
            return None;
        };
        let mut list = Vec::new();
        for (number, entry) in (1..).zip(entries) {
            let place = format!("{name}[{number}]");
            list.extend(self.value(entry, &place, &mut check));
        }
        Some(list)
    }

    /// Complains about whatever no part has taken. A key that stands above all sections belongs
    /// into one of those that `sections_of` it tells.
    pub fn nothing_left(
        &mut self,
        root: DeTable<'a>,
        known: &[&str],
        sections_of: impl Fn(&str) -> Vec<String>,
    ) {
        for (key, value) in root {
            let name = key.get_ref();
            let sections = sections_of(name);
            let is_section = matches!(value.get_ref(), DeValue::Table(_) | DeValue::Array(_));
            let message = match did_you_mean(name, known.iter().copied()) {
                _ if !is_section && !sections.is_empty() => {
                    format!(
                        "`{name}` is outside any section: expected it in {}",
                        sections.join(", ")
                    )
                }
                Some(meant) => format!("unknown section `{name}`: {meant}"),
                None => {
                    format!("unknown section `{name}`: expected one of {}", known.join(", "))
                }
            };
            self.note(Severity::Error, Some(key.span()), name.to_string(), message);
        }
    }

    /// All that was noticed, in the order of the text.
    pub fn report(mut self, file: &str) -> Report {
        self.problems.sort_by_key(|problem| problem.span.as_ref().map_or(0, |span| span.start));
        Report::new(file.into(), self.text.into(), self.problems)
    }

    fn value<T: DeserializeOwned>(
        &mut self,
        value: Spanned<DeValue<'a>>,
        place: &str,
        check: impl FnOnce(&T) -> Vec<Complaint>,
    ) -> Option<T> {
        let whole = value.clone();
        let (read, clean) = self.read::<T>(value, place);
        let read = read?;
        // A value read in place of a mistake would draw complaints of its own.
        if clean {
            for complaint in check(&read) {
                let span = place_of(&whole, &complaint);
                let key = format!("{place}.{}", complaint.key);
                self.note(complaint.severity, Some(span), key, complaint.message);
            }
        }
        Some(read)
    }

    /// Reads a value without what cannot be read in it; whether nothing had to be left out.
    fn read<T: DeserializeOwned>(
        &mut self,
        mut value: Spanned<DeValue<'a>>,
        place: &str,
    ) -> (Option<T>, bool) {
        let whole = value.clone();
        let mut left_out: Vec<Cut> = Vec::new();
        loop {
            let error = match T::deserialize(ValueDeserializer::from(value.clone())) {
                Ok(read) => return (Some(read), left_out.is_empty()),
                Err(error) => error,
            };
            let span = error.span().unwrap_or_else(|| value.span());
            // serde tells the place of a list, and not that of the entry.
            let bad = bad_entries::<T>(&value, &span);
            if !bad.is_empty() {
                let key = format!("{place}{}", path_to(&whole, &span));
                for (at, message) in &bad {
                    let text = self.text.get(at.clone()).unwrap_or_default();
                    let message = in_words(message, text);
                    self.note(Severity::Error, Some(at.clone()), key.clone(), message);
                }
                if let Some(entries) = list_at(&mut value, &span) {
                    let good = |entry: &Spanned<_>| bad.iter().all(|(at, _)| *at != entry.span());
                    let all = std::mem::replace(entries, DeArray::new()).into_iter();
                    *entries = all.filter(good).collect();
                }
                left_out.push(Cut::Entry);
                continue;
            }
            let is_missing = |cut: &Cut| match cut {
                Cut::Key { table, key } => {
                    *table == span && error.message() == format!("missing field `{key}`")
                }
                Cut::Entry => false,
            };
            // It is missing because it was left out: what it belongs to goes too, and in silence.
            let told = left_out.iter().any(is_missing);
            if !told {
                let key = format!("{place}{}", path_to(&whole, &span));
                let text = self.text.get(span.clone()).unwrap_or_default();
                let message = in_words(error.message(), text);
                self.note(Severity::Error, Some(span.clone()), key, message);
            }
            match cut(&mut value, &span) {
                Some(what) => left_out.push(what),
                None => return (None, false),
            }
        }
    }

    fn note(
        &mut self,
        severity: Severity,
        span: Option<Range<usize>>,
        key: String,
        message: String,
    ) {
        self.problems.push(Problem { severity, span, key, message });
    }
}

/// The entries of the list at this place that cannot be read, each with its own place and why.
fn bad_entries<T: DeserializeOwned>(
    value: &Spanned<DeValue<'_>>,
    at: &Range<usize>,
) -> Vec<(Range<usize>, String)> {
    let mut probe = value.clone();
    let Some(all) = list_at(&mut probe, at).map(|list| list.clone()) else { return Vec::new() };
    let mut bad = Vec::new();
    for entry in all {
        let place = entry.span();
        let Some(list) = list_at(&mut probe, at) else { break };
        *list = std::iter::once(entry).collect();
        match T::deserialize(ValueDeserializer::from(probe.clone())) {
            Err(error) if error.span().is_some_and(|span| span == *at) => {
                bad.push((place, error.message().to_owned()));
            }
            _ => {}
        }
    }
    bad
}

/// What was left out of a value.
enum Cut {
    /// A key of the table at this place.
    Key { table: Range<usize>, key: String },
    /// An entry of a list.
    Entry,
}

/// Whether this is the place of a value itself, and of nothing in it: a list of `[[name]]` has the
/// place of its first table.
fn is_at(value: &Spanned<DeValue<'_>>, at: &Range<usize>) -> bool {
    let within = |entry: &Spanned<_>| entry.span() == *at;
    value.span() == *at && !value.get_ref().as_array().is_some_and(|all| all.iter().any(within))
}

/// The list whose place this is.
fn list_at<'v, 'i>(
    value: &'v mut Spanned<DeValue<'i>>,
    at: &Range<usize>,
) -> Option<&'v mut DeArray<'i>> {
    let here = is_at(value, at);
    match value.get_mut() {
        DeValue::Array(entries) => match here {
            true => Some(entries),
            false => entries.as_mut().iter_mut().find_map(|inner| list_at(inner, at)),
        },
        DeValue::Table(table) => table.iter_mut().find_map(|(_, inner)| list_at(inner, at)),
        _ => None,
    }
}

fn holds(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

/// Whether a place lies in a value. The place of a table that is written as `[name]` is only that
/// line.
fn covers(value: &Spanned<DeValue<'_>>, at: &Range<usize>) -> bool {
    holds(&value.span(), at)
        || match value.get_ref() {
            DeValue::Table(table) => table.iter().any(|(key, value)| is_of(key, value, at)),
            DeValue::Array(entries) => entries.iter().any(|entry| covers(entry, at)),
            _ => false,
        }
}

/// Whether a place belongs to an entry of a table.
fn is_of(key: &Spanned<Cow<'_, str>>, value: &Spanned<DeValue<'_>>, at: &Range<usize>) -> bool {
    holds(&key.span(), at) || covers(value, at)
}

/// The keys that lead to a place, `.require[2].clients`; which of them in a list of values, the
/// place itself tells.
fn path_to(value: &Spanned<DeValue<'_>>, at: &Range<usize>) -> String {
    match value.get_ref() {
        DeValue::Table(table) => {
            let found = table.iter().find(|(key, value)| is_of(key, value, at));
            found.map_or_else(String::new, |(key, inner)| {
                format!(".{}{}", key.get_ref(), path_to(inner, at))
            })
        }
        DeValue::Array(entries) => {
            let found = (1..).zip(entries.iter()).find(|(_, entry)| covers(entry, at));
            let found = found.filter(|(_, entry)| entry.get_ref().as_table().is_some());
            found.map_or_else(String::new, |(number, entry)| {
                format!("[{number}]{}", path_to(entry, at))
            })
        }
        _ => String::new(),
    }
}

/// Takes out the innermost key or entry of a list that a place belongs to, and says what it was;
/// not the value itself.
fn cut(value: &mut Spanned<DeValue<'_>>, at: &Range<usize>) -> Option<Cut> {
    let of = value.span();
    match value.get_mut() {
        DeValue::Table(table) => {
            let (key, inner) = table.iter_mut().find(|(key, value)| is_of(key, value, at))?;
            let (key, here) = (key.get_ref().to_string(), is_at(inner, at));
            match (!here).then(|| cut(inner, at)).flatten() {
                Some(what) => Some(what),
                None => table.remove(key.as_str()).map(|_| Cut::Key { table: of, key }),
            }
        }
        DeValue::Array(entries) => {
            let place = entries.iter().position(|entry| covers(entry, at))?;
            let here = is_at(&entries[place], at);
            match (!here).then(|| cut(&mut entries.as_mut()[place], at)).flatten() {
                Some(what) => Some(what),
                None => {
                    let mut number = 0..;
                    let others = std::mem::replace(entries, DeArray::new()).into_iter();
                    *entries = others.filter(|_| number.next() != Some(place)).collect();
                    Some(Cut::Entry)
                }
            }
        }
        _ => None,
    }
}

/// Where the value is that a complaint is about; as near as it can be found.
fn place_of(whole: &Spanned<DeValue<'_>>, complaint: &Complaint) -> Range<usize> {
    let mut at = whole;
    let steps = std::iter::once(Step::Key(complaint.key)).chain(complaint.within.iter().copied());
    for step in steps {
        let inner = match (at.get_ref(), step) {
            (DeValue::Table(table), Step::Key(key)) => table.get(key),
            (DeValue::Array(entries), Step::Entry(number)) => entries.get(number),
            _ => None,
        };
        match inner {
            Some(inner) => at = inner,
            None => break,
        }
    }
    at.span()
}

/// What is wrong in one file.
#[derive(Debug)]
pub struct Report {
    file: String,
    text: String,
    problems: Vec<Problem>,
}

impl Report {
    /// A report on a file with this text.
    pub fn new(file: String, text: String, problems: Vec<Problem>) -> Self {
        Self { file, text, problems }
    }

    /// Whether anything makes the settings unusable.
    pub fn has_errors(&self) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Error)
    }

    /// Whether there is anything to say.
    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// Each problem of this severity in one line, for a log:
    /// `file:line:column: error: key: message`.
    pub fn lines(&self, severity: Severity) -> impl Iterator<Item = String> {
        self.problems.iter().filter(move |problem| problem.severity == severity).map(|problem| {
            let place = problem.span.as_ref().map_or(String::new(), |span| {
                let (line, column) = self.line_and_column(span.start);
                format!("{line}:{column}:")
            });
            let severity = word(problem.severity);
            let key = if problem.key.is_empty() { "" } else { ": " };
            format!("{}:{place} {severity}: {}{key}{}", self.file, problem.key, problem.message)
        })
    }

    /// The first error, with its line, and how many there are beside it.
    pub fn first_error(&self) -> Option<String> {
        let mut errors = self.problems.iter().filter(|it| it.severity == Severity::Error);
        let first = errors.next()?;
        let line = first.span.as_ref().map(|span| self.line_and_column(span.start).0);
        let line = line.map_or(String::new(), |line| format!("line {line}: "));
        let key = if first.key.is_empty() { "" } else { ": " };
        let more = match errors.count() {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        Some(format!("{line}{}{key}{}{more}", first.key, first.message))
    }

    fn line_and_column(&self, byte: usize) -> (usize, usize) {
        let before = self.text.get(..byte).unwrap_or(&self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}

/// With the lines concerned and carets under the places.
impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        // `{:#}` is for a terminal.
        let renderer = if f.alternate() { Renderer::styled() } else { Renderer::plain() };
        for problem in &self.problems {
            let level = match problem.severity {
                Severity::Warning => Level::WARNING,
                Severity::Error => Level::ERROR,
            };
            let title = match problem.key.as_str() {
                "" => problem.message.clone(),
                key => format!("{key}: {}", problem.message),
            };
            let Some(span) = problem.span.clone() else {
                writeln!(f, "{}: {}: {title}", word(problem.severity), self.file)?;
                continue;
            };
            let annotation = AnnotationKind::Primary.span(span);
            let snippet =
                Snippet::source(self.text.as_str()).path(&self.file).annotation(annotation);
            let report = [level.primary_title(title.as_str()).element(snippet)];
            writeln!(f, "{}\n", renderer.render(&report))?;
        }
        Ok(())
    }
}
