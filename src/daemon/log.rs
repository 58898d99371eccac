//! Where lines go: to standard error, through a bounded queue, so that nobody who decides ever
//! waits for whoever reads them. When the queue is full, lines are dropped and counted.

mod fields;
mod writer;

use std::fmt;
use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tracing::{Event, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{self, FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{self as lines, FmtContext};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use self::fields::Quoting;
use self::writer::Lines;
use crate::config::{Format, Level, Log};

/// Lines that may wait to be written. At some 400 bytes each, 3 MiB.
const QUEUE: usize = 8_192;

/// The log of this process.
pub struct Logging {
    level: reload::Handle<Targets, Registry>,
    /// Lines that found the queue full.
    dropped: ErrorCounter,
    /// Lines that could not be written.
    unwritten: Arc<AtomicUsize>,
    writer: WorkerGuard,
}

impl Logging {
    /// Starts to log. Once in a process.
    pub fn start(params: &Log) -> Self {
        let unwritten = Arc::default();
        let (writer, guard) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(QUEUE)
            .finish(Lines::new(io::stderr(), Arc::clone(&unwritten)));
        let dropped = writer.error_counter();
        let (filter, level) = reload::Layer::new(filter(params.level));
        let lines = lines::layer().with_target(false).with_writer(writer);
        let lines = match format_in_force(params.format) {
            Format::Json => lines.json().flatten_event(true).boxed(),
            Format::Journald => {
                let plain = format::format().without_time().with_level(false).with_target(false);
                let lines = lines.fmt_fields(Quoting).with_ansi(false);
                lines.event_format(Prioritised(plain)).boxed()
            }
            Format::Text | Format::Auto => {
                lines.fmt_fields(Quoting).with_ansi(io::stderr().is_terminal()).boxed()
            }
        };
        tracing_subscriber::registry().with(filter).with(lines).init();
        std::panic::set_hook(Box::new(|panic| {
            tracing::error!(panic = panic.to_string(), "a fault of ours");
        }));
        Self { level, dropped, unwritten, writer: guard }
    }

    /// Writes more or fewer lines from now on.
    pub fn set_level(&self, level: Level) {
        // It fails only when the subscriber is gone, and with it every line.
        let _ = self.level.reload(filter(level));
    }

    /// How many lines have been lost: those that found the queue full, and those that could not be
    /// written.
    pub fn lost_lines(&self) -> usize {
        self.dropped.dropped_lines() + self.unwritten.load(Ordering::Relaxed)
    }

    /// Writes what still waits.
    pub fn finish(self) {
        drop(self.writer);
    }
}

/// The libraries are heard at `trace` only.
fn filter(level: Level) -> Targets {
    let ours = match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => return Targets::new().with_default(LevelFilter::TRACE),
    };
    Targets::new().with_default(LevelFilter::ERROR.min(ours)).with_target("postpone", ours)
}

fn format_in_force(format: Format) -> Format {
    // Set by systemd when our standard error is the journal's.
    let under_systemd = std::env::var_os("JOURNAL_STREAM").is_some();
    match format {
        Format::Auto if under_systemd && !io::stderr().is_terminal() => Format::Journald,
        Format::Auto => Format::Text,
        chosen => chosen,
    }
}

/// Puts the priority in front of each line, as sd-daemon(3) says.
struct Prioritised<F>(F);

impl<S, N, F> FormatEvent<S, N> for Prioritised<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        cx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let priority = match *event.metadata().level() {
            tracing::Level::ERROR => 3,
            tracing::Level::WARN => 4,
            tracing::Level::INFO => 6,
            tracing::Level::DEBUG | tracing::Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(cx, writer, event)
    }
}
