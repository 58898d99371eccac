//! Reads TOML so that every independent mistake is found in one go, each with its place.
//!
//! serde stops at its first error. So each section, and each entry of a list, is read by itself;
//! and within one, the key that failed is taken out and the rest read again.

use std::fmt::{self, Display, Formatter};
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use crate::setting::{Complaint, Severity};

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

    /// Complains about whatever no part has taken.
    pub fn nothing_left(&mut self, root: DeTable<'a>, known: &[&str]) {
        for key in root.keys() {
            let expected = known.join(", ");
            let message =
                format!("unknown section `{}`, expected one of {expected}", key.get_ref());
            self.note(Severity::Error, Some(key.span()), key.get_ref().to_string(), message);
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
                let span = key_of(&whole, |key, _| key.get_ref() == complaint.key)
                    .map_or_else(|| whole.span(), |(_, span)| span);
                let key = format!("{place}.{}", complaint.key);
                self.note(complaint.severity, Some(span), key, complaint.message);
            }
        }
        Some(read)
    }

    /// Reads a value without the keys that cannot be read; whether none had to be left out.
    fn read<T: DeserializeOwned>(
        &mut self,
        mut value: Spanned<DeValue<'a>>,
        place: &str,
    ) -> (Option<T>, bool) {
        let mut left_out: Vec<String> = Vec::new();
        loop {
            let error = match T::deserialize(ValueDeserializer::from(value.clone())) {
                Ok(read) => return (Some(read), left_out.is_empty()),
                Err(error) => error,
            };
            let missing = |key: &String| error.message() == format!("missing field `{key}`");
            if left_out.iter().any(missing) {
                return (None, false);
            }
            let at = error.span();
            let holds = |inner: &Range<usize>, outer: &Range<usize>| {
                outer.start <= inner.start && inner.end <= outer.end
            };
            let culprit = at.as_ref().and_then(|at| {
                key_of(&value, |key, value| holds(at, &key.span()) || holds(at, &value.span()))
            });
            let key =
                culprit.as_ref().map_or(place.to_owned(), |(key, _)| format!("{place}.{key}"));
            let message = error.message().trim_end().replace('\n', "; ");
            let span = at.unwrap_or_else(|| value.span());
            self.note(Severity::Error, Some(span), key, message);
            let (DeValue::Table(table), Some((key, _))) = (value.get_mut(), culprit) else {
                return (None, false);
            };
            table.remove(key.as_str());
            left_out.push(key);
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

/// The first key of a table that `is` the one, and the place of its value.
fn key_of(
    value: &Spanned<DeValue<'_>>,
    is: impl Fn(&Spanned<std::borrow::Cow<'_, str>>, &Spanned<DeValue<'_>>) -> bool,
) -> Option<(String, Range<usize>)> {
    let table = value.get_ref().as_table()?;
    let (key, value) = table.iter().find(|(key, value)| is(key, value))?;
    Some((key.get_ref().to_string(), value.span()))
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
        let renderer = Renderer::plain();
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
                writeln!(f, "{}: {}: {title}", self.file, word(problem.severity))?;
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
