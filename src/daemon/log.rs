//! Where lines go: to standard error, through a bounded queue, so that nobody who decides ever
//! waits for whoever reads them. When the queue is full, lines are dropped and counted.

mod fields;
mod queue;
mod writer;

use std::fmt;
use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::time::Duration;

use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{self, FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{self as lines, FmtContext};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use self::fields::Quoting;
use self::queue::Queue;
use crate::config::{Format, Level, Log};

/// How long the end waits for a reader of the log. One that reads takes all of it in milliseconds.
const LAST_LINES: Duration = Duration::from_millis(500);

/// The log of this process.
pub struct Logging {
    level: reload::Handle<Targets, Registry>,
    queue: Arc<Queue>,
}

impl Logging {
    /// Starts to log. Once in a process.
    ///
    /// # Errors
    ///
    /// The system gives no thread.
    pub fn start(params: &Log) -> io::Result<Self> {
        let queue = Arc::new(Queue::start(io::stderr())?);
        let writer = Arc::clone(&queue);
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
            tracing::error!(panic = panic.to_string(), "internal error: a thread panicked");
        }));
        Ok(Self { level, queue })
    }

    /// Writes more or fewer lines from now on.
    pub fn set_level(&self, level: Level) {
        // It fails only when the subscriber is gone, and with it every line.
        let _ = self.level.reload(filter(level));
    }

    /// How many lines have been lost: those that found the queue full, and those that could not be
    /// written.
    pub fn lost_lines(&self) -> usize {
        self.queue.lost()
    }

    /// Writes what still waits, unless nobody reads it.
    pub fn finish(&self) {
        self.queue.drain(LAST_LINES);
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
