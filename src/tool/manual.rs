//! What an administrator has to know beside the options: examples, signals, exit codes, files and
//! variables. `--help` shows it, and the manual pages are made from it, so each stands here once.

use super::command::DEFAULT_FILE;
use crate::exit;

/// One thing and what is said of it.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// How it is called.
    pub name: &'static str,
    /// What it means, in whole sentences. What stands between backticks is written so.
    pub text: &'static str,
}

/// An exit code, and what it says.
#[derive(Clone, Copy, Debug)]
pub struct Exit {
    /// The number; those above 0 are of sysexits.h.
    pub code: u8,
    /// What it means.
    pub text: &'static str,
}

const fn entry(name: &'static str, text: &'static str) -> Entry {
    Entry { name, text }
}

const fn ended(code: u8, text: &'static str) -> Exit {
    Exit { code, text }
}

/// What is typed most often; the command, and what for.
pub const EXAMPLES: &[Entry] = &[
    entry(
        "postpone setup postfix",
        "Shows the change that makes Postfix ask postpone; `--apply` makes it.",
    ),
    entry("postpone check", "Checks the settings, after each change."),
    entry("postpone ctl reload", "Puts changed settings in force. No session is lost."),
    entry("postpone ctl status", "Shows load, refusals by rule, internal errors and state."),
    entry(
        "postpone explain 192.0.2.7",
        "Shows why a client has to wait, and what would exempt it.",
    ),
    entry(
        "postpone explain 6h010sefg00",
        "Shows a decision, by the id in its reply or its log line.",
    ),
    entry("postpone explain --sender anna@example.net", "Shows the last decisions about a sender."),
    entry("postpone ctl allow 192.0.2.7 --for 7d", "Exempts one client at once, for a week."),
    entry(
        "postpone ctl maintenance on --for 30m",
        "Refuses new sessions with a 421 for half an hour.",
    ),
    entry("postpone ctl bypass on --for 10m", "Lets everything pass for ten minutes."),
    entry("postpone ctl shadow messages --for 1h", "Puts one rule into shadow mode for an hour."),
    entry("postpone log -f", "Shows each decision as it is made, one short line each."),
    entry("journalctl -u postpone -g client=192.0.2.7", "Shows every refusal of a client."),
];

/// What the daemon does at a signal.
pub const SIGNALS: &[Entry] = &[
    entry(
        "SIGHUP",
        "Read the settings again, and the lists they name, as `postpone ctl reload` does. A file \
         with mistakes changes nothing, and the log shows them. Counters and open sessions stay. \
         The log names changes that take effect only at a restart.",
    ),
    entry(
        "SIGTERM, SIGINT",
        "Stop. New sessions pass unchecked from then on; open ones are still checked, and may \
         finish within `server.grace`. Then state is saved. Whatever hangs then is not waited \
         for: the \
         daemon ends a second after the grace, or when the disk has not answered for ten seconds \
         while state is saved. A second signal ends it at once, whatever is not saved.",
    ),
];

/// How `postpone serve` ends.
pub const SERVE_EXITS: &[Exit] = &[
    ended(0, "Stopped by a signal."),
    ended(exit::USAGE, "The command line is wrong."),
    ended(exit::SYSTEM, "The operating system refused a resource, or a thread has failed."),
    ended(
        exit::OUTPUT,
        "An address or a socket could not be opened; those of [control] only if the file names \
         them.",
    ),
    ended(exit::STATE, "The state cannot be used, or was not saved completely."),
    ended(
        exit::UNFINISHED,
        "Told to stop, it ended before everything was done: something hung, or it was told twice. \
         The \
         last line of the log says what.",
    ),
    ended(exit::SETTINGS, "The settings cannot be used. Correct them before you start it again."),
];

/// How everything else ends.
pub const TOOL_EXITS: &[Exit] = &[
    ended(0, "Done. `check`: the settings can be used, perhaps with warnings."),
    ended(exit::USAGE, "The command line is wrong."),
    ended(
        exit::DATA,
        "`replay`: a line is not an event; its number is given. `state`: the input is damaged, or \
         not \
         of \
         the expected kind; the place is given. `ctl`, `explain`: the daemon cannot do what was \
         asked: there is no such listener or id, or the time has passed or is too far ahead.",
    ),
    ended(exit::INPUT, "`state import`: the input cannot be read."),
    ended(
        exit::UNAVAILABLE,
        "`ctl`, `explain`: no daemon answers. `log`: the journal or the file cannot be read. \
         `setup`: there is no Postfix, or it could not be \
         reloaded.",
    ),
    ended(exit::OUTPUT, "`state export`, `setup`: a file could not be written."),
    ended(
        exit::STATE,
        "`state`: the state cannot be used: it does not exist, a daemon uses it, or a later \
         version \
         wrote it. Others: something could not be read, or the output could not be written; a pipe that `head` has closed prints no error.",
    ),
    ended(exit::PROTOCOL, "`ctl`, `explain`: the answer is not from a daemon of this version."),
    ended(
        exit::PERMISSION,
        "`ctl`, `explain`: this user may not use the control socket. `setup`: you are not root.",
    ),
    ended(
        exit::SETTINGS,
        "The settings cannot be used. `ctl reload`: the new ones cannot, and nothing has changed. \
         `setup`: `postfix check` refuses the change, and the files are restored.",
    ),
];

/// Files and folders, unless the settings say otherwise.
pub const FILES: &[Entry] = &[
    entry(DEFAULT_FILE, "The settings. Without the file the built-in settings hold."),
    entry(
        "/var/lib/postpone",
        "The state: what greylisting and behaviour have learned, and a secret. As confidential as \
         a mail log.",
    ),
    entry(
        "/run/postpone/control.sock",
        "The control socket, for `ctl` and `explain`. Root, the daemon's own user, the owner of \
         the \
         socket and its group may use it.",
    ),
    entry(
        "/usr/share/doc/postpone",
        "The README, the book (`docs`), ready policies, and the lines for Postfix and Sendmail.",
    ),
];

/// What the service manager may tell the daemon.
pub const VARIABLES: &[Entry] = &[
    entry(
        "NOTIFY_SOCKET",
        "The socket on which systemd is told that the daemon serves, reloads or stops, and its \
         status (sd_notify(3)).",
    ),
    entry(
        "WATCHDOG_USEC",
        "The time after which systemd restarts a daemon that sends no keep-alive.",
    ),
    entry(
        "LISTEN_FDS",
        "The number of sockets that systemd passes already open (sd_listen_fds(3)). Each serves the \
         listener of its address, so that sessions wait during a restart instead of passing \
         unchecked.",
    ),
    entry(
        "JOURNAL_STREAM",
        "Standard error is the journal if this names it. With `log.format = \"auto\"` lines then \
         begin with a priority, and have no time.",
    ),
];

/// What `postpone --help` says after the options.
pub fn after_help() -> String {
    titled("Examples", EXAMPLES.iter().map(|entry| (entry.name.into(), entry.text)))
        + "\nMore is in postpone(1), postpone(8), postpone.toml(5) and postpone-night(7)."
}

/// What `postpone serve --help` says after the options.
pub fn after_serve_help() -> String {
    let names =
        |entries: &'static [Entry]| entries.iter().map(|entry| (entry.name.to_owned(), entry.text));
    let exits = SERVE_EXITS.iter().map(|exit| (exit.code.to_string(), exit.text));
    [
        titled("Signals", names(SIGNALS)),
        titled("Exit status", exits),
        titled("Files", names(FILES)),
        titled("Environment", names(VARIABLES)),
    ]
    .join("\n")
}

fn titled(title: &str, entries: impl Iterator<Item = (String, &'static str)>) -> String {
    let lines = entries.map(|(name, text)| format!("  {name}\n          {text}\n"));
    format!("{title}:\n{}", lines.collect::<String>())
}
