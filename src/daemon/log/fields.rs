//! How the fields of a line are written: `key=value`, in quotes where it could be taken for more
//! than one value.

use std::fmt::{self, Debug, Write};

use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;

/// The message as it is; then every field. A string is always quoted, since a client may have
/// chosen it; what we have named ourselves, only where it needs to be.
pub(super) struct Quoting;

impl<'w> FormatFields<'w> for Quoting {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut line = Line { writer, begun: false, result: Ok(()) };
        fields.record(&mut line);
        line.result
    }
}

struct Line<'w> {
    writer: Writer<'w>,
    begun: bool,
    result: fmt::Result,
}

impl Line<'_> {
    fn put(&mut self, field: &Field, value: &dyn Debug) {
        let blank = if self.begun { " " } else { "" };
        self.begun = true;
        let written = match field.name() {
            "message" => write!(self.writer, "{blank}{value:?}"),
            // As the macros write a field whose name is a word of Rust.
            name => write!(self.writer, "{blank}{}={value:?}", name.trim_start_matches("r#")),
        };
        self.result = self.result.and(written);
    }
}

impl Visit for Line<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, &value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = String::new();
        let whole = write!(text, "{value:?}");
        let apart = |c: char| c.is_whitespace() || c.is_control() || c == '"';
        match field.name() != "message" && (text.is_empty() || text.contains(apart)) {
            true => self.put(field, &text),
            false => self.put(field, &format_args!("{text}")),
        }
        self.result = self.result.and(whole);
    }
}
