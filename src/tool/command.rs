//! The command line: every subcommand and every option, once. `--help`, the manual pages and the
//! completions of shells are made from it; what is done with it is told by `main.rs`.
//!
//! What has no documentation here takes its help from elsewhere: documenting it would change that.

#![allow(missing_docs)]

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::ctl::{Detail, Form};
use super::log::Since;
use super::manual;
use crate::clock::Time;
use crate::front::control::protocol::Request;
use crate::meter::units::Span;

/// Where the settings are when nobody says otherwise.
pub const DEFAULT_FILE: &str = "/etc/postpone/postpone.toml";

/// Options that every subcommand has stand below its own.
const COMMON: &str = "Common options";

/// Rate-limits and greylists inbound SMTP for Postfix and Sendmail.
///
/// Every refusal is temporary, and states its reason and the time to retry.
#[derive(Parser)]
#[command(version, after_long_help = manual::after_help())]
pub struct Cli {
    /// The settings file [default: /etc/postpone/postpone.toml, or built-in settings without that
    /// file].
    #[arg(long, value_name = "FILE", global = true, help_heading = COMMON)]
    pub config: Option<PathBuf>,
    /// The control socket of the daemon, for `ctl` and `explain` [default: the one the settings
    /// file names].
    #[arg(long, value_name = "PATH", global = true, help_heading = COMMON)]
    pub socket: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run the daemon: serve MTAs until SIGTERM; SIGHUP reads the settings again.
    ///
    /// The daemon is a milter for Postfix and Sendmail, and a policy service for Postfix. It counts
    /// what each client does. A client that exceeds what the settings allow is refused by a
    /// temporary reply, with the reason and the seconds to wait. It never refuses permanently, and
    /// never reads the content of a message.
    ///
    /// It answers from memory, and waits neither for a disk nor for DNS. After an internal error,
    /// or while it is stopped, mail passes if the MTA is configured for that: with
    /// `default_action=accept` for a milter of Postfix, `default_action=DUNNO` for a policy
    /// service, and without `F=` in Sendmail.
    ///
    /// Without a settings file the built-in limits hold, which stop floods only. Greylisting is
    /// then in shadow mode. A rule in shadow mode refuses no client: it counts, and logs what it
    /// would have refused.
    #[command(after_long_help = manual::after_serve_help())]
    Serve,
    /// Check the settings file, and show each mistake with its line. Exits with 78 if the file
    /// cannot be used.
    /// A file with warnings can be used. Nothing changes in the running daemon: `postpone ctl
    /// reload` puts the file in force.
    Check {
        /// The file [default: the one that `--config` names, else the installed one].
        #[arg(value_name = "FILE", conflicts_with = "config")]
        file: Option<PathBuf>,
        /// Print the settings in force as TOML, every key spelled out, and as comments the built-in
        /// limits that they replace.
        #[arg(long)]
        print: bool,
    },
    /// Show what these settings would have answered to recorded mail.
    ///
    /// The trace is played by its own clock and from empty memory; no daemon is asked. Each line is
    /// a JSON object, and so is each answer; /usr/share/doc/postpone/docs/replay.md lists the
    /// fields. The same trace always gives the same output. Exits with 65 at a line that is not an
    /// event.
    Replay {
        /// The trace; `-` is standard input.
        #[arg(long, value_name = "FILE|-")]
        events: PathBuf,
    },
    /// Check, export or import the state of a stopped daemon.
    ///
    /// The state is in the folder that `--path` names, by default the one in the settings. Exits
    /// with 74 if it cannot be used: it does not exist, a daemon uses it, or a later version wrote
    /// it.
    State {
        #[command(subcommand)]
        what: State,
        /// The folder of the state [default: the settings' `state.path`].
        #[arg(long, value_name = "DIR", global = true)]
        path: Option<PathBuf>,
    },
    /// Control the running daemon.
    ///
    /// `--socket` names the daemon's socket, by default `[control] socket` in the settings file
    /// does. Root, the daemon's own user, the owner of the socket and its group may use it. Exits
    /// with 69 if no daemon answers, with 77 if you may not use it.
    #[command(subcommand)]
    Ctl(Ctl),
    /// Explain what a client may do and why, or a decision by its id.
    ///
    /// The first line is the answer: whether the client may send its next message, or in how many
    /// seconds, and why. Then follow its standing, its score by terms, its pace, what limits have
    /// counted, what greylisting knows, and what would exempt it. Nothing changes. The daemon is
    /// found as for `ctl`.
    Explain {
        /// The client's address, or the id in a reply or a log line.
        #[arg(value_name = "CLIENT|ID", required_unless_present = "sender")]
        what: Option<String>,
        /// The client's name, as the MTA would confirm it [default: its name in the last decision
        /// about it].
        #[arg(long, value_name = "NAME", requires = "what")]
        name: Option<String>,
        /// A sender of this client. Without a client: the last decisions about this sender, or
        /// about all senders of this domain.
        #[arg(long, value_name = "SENDER")]
        sender: Option<String>,
        #[command(flatten)]
        detailed: Detailed,
    },
    /// Show the decisions in the log, one short line each.
    ///
    /// A line has the time, the action (in parentheses: what a rule in shadow mode would have
    /// done), the client, the rule, the wait, the sender, the recipient, and the id for `explain`.
    /// Without FILE, the journal of the systemd unit postpone is read.
    Log {
        /// A file with the log, in any of its formats; `-` is standard input.
        #[arg(value_name = "FILE|-")]
        file: Option<PathBuf>,
        /// Go on with new lines as they are written; without --since, begin with the last 1000
        /// lines of the log.
        #[arg(short, long)]
        follow: bool,
        /// Begin at this time: "1h" ago, or 2026-11-21T22:07:20Z.
        #[arg(long, value_name = "TIME")]
        since: Option<Since>,
    },
    /// Configure an MTA to ask postpone, or undo that.
    #[command(subcommand)]
    Setup(Setup),
}

#[derive(Subcommand)]
pub enum Setup {
    /// Configure Postfix to ask postpone: show the change, make it, or undo it.
    ///
    /// Without --apply or --undo nothing changes: the output is what Postfix has now, what it would
    /// get, and the `postconf` commands for the change.
    ///
    /// postpone's addresses are taken from `[[listen]]` in the settings. The first milter goes last
    /// in `smtpd_milters`. Without a milter, the first policy service goes last in
    /// `smtpd_recipient_restrictions`, but before a closing `permit`, and in
    /// `smtpd_end_of_data_restrictions`. The submission services of master.cf get a milter with
    /// speak = "mail", if that is one clear line; otherwise the lines are shown for you to add.
    /// Mail passes while postpone does not answer.
    ///
    /// Existing entries stay as they are, and applying twice changes nothing. An entry that names
    /// the same address differently counts too; if it would defer mail while postpone is away, it
    /// is corrected.
    ///
    /// A change is read back, and `postfix check` must accept it. Otherwise, or if it is
    /// interrupted, the files are restored. Then Postfix is reloaded, if it runs.
    ///
    /// Exits with 0 if it is done or there was nothing to do, with 69 if Postfix is not installed
    /// or could not be reloaded, with 73 if its files cannot be written, with 77 if you are not
    /// root, with 78 if the settings cannot be used or `postfix check` refuses the change.
    Postfix {
        /// Make the change.
        #[arg(long, conflicts_with = "undo")]
        apply: bool,
        /// Remove every entry that names a listener of the settings, whoever added it. Undo before
        /// you change a listener's address: an entry with the old one is not recognised.
        #[arg(long)]
        undo: bool,
        /// The folder of main.cf, if there are several instances of Postfix [default: MAIL_CONFIG
        /// in the environment, else `postconf -h config_directory`].
        #[arg(long, value_name = "DIR")]
        postfix: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
pub enum State {
    /// Read the state, and report its entries and any damage. Exits with 65 if it is damaged.
    ///
    /// No entry is changed.
    Check,
    /// Write all entries that have not expired as JSON, one a line.
    ///
    /// The first line has the secret that the keys are made with; they mean nothing without it. So
    /// an export is as confidential as the folder itself, and only the owner may read a FILE.
    Export {
        /// The file to write; `-` is standard output. A file is replaced when the new one is
        /// complete.
        #[arg(default_value = "-")]
        file: PathBuf,
    },
    /// Import an export, or what postgrey or sqlgrey has learned.
    ///
    /// Existing entries are kept: of two entries for one key, the stronger stays. So nothing is
    /// lost, and importing twice changes nothing more. At a line that cannot be read it stops with
    /// 65; the lines before it are imported.
    ///
    /// An export made with another secret is imported only into a folder without entries. A missing
    /// folder is created.
    ///
    /// postgrey: the text of db_dump (Debian's package db5.3-util), first of one database, then of
    /// the other. Without -h, entries still in postgrey's log files are missing:
    ///
    ///     db5.3_dump -h /var/lib/postgrey -p postgrey.db | postpone state import -
    ///     db5.3_dump -h /var/lib/postgrey -p postgrey_clients.db | postpone state import -
    ///
    /// sqlgrey: a dump of its database as SQL, one of
    ///
    ///     sqlite3 /var/lib/sqlgrey/sqlgrey.db .dump | postpone state import -
    ///     mysqldump sqlgrey | postpone state import -
    ///     pg_dump --inserts sqlgrey | postpone state import -
    ///
    /// Entries that have passed are imported: postgrey's triplets that had waited for
    /// `greylist.delay`, its clients with `greylist.proven_after` passes, sqlgrey's senders and
    /// domains. Each expires `greylist.forget` after it was last seen there.
    #[command(verbatim_doc_comment)]
    Import {
        /// The file to read; `-` is standard input.
        file: PathBuf,
    },
}

#[derive(Subcommand)]
pub enum Ctl {
    /// Show the daemon's status: settings, load, refusals by rule, internal errors, state.
    Status(Detailed),
    /// Read the settings again, and show any mistakes.
    ///
    /// The lists that the settings name are read too. A bad file changes nothing; the exit code is
    /// then 78. Changes that take effect only at a restart are named. A session keeps the policy it
    /// began with.
    Reload(Shown),
    /// Refuse new sessions for a time, or accept them again.
    #[command(subcommand)]
    Maintenance(Maintenance),
    /// Let everything pass for a time, or put the rules in force again.
    #[command(subcommand)]
    Bypass(Bypass),
    /// Put one rule into shadow mode for a time: it refuses no client.
    ///
    /// The rule still counts, and logs what it would have refused, with mode=shadow. This ends by
    /// itself, and when the daemon restarts. A second command replaces the end.
    Shadow {
        /// The limit's name, or access, maintenance, load, greylist or behaviour.
        #[arg(value_name = "LIMIT")]
        rule: String,
        /// How long: "30m", "2h"; 7d at most [default: 1h].
        #[arg(long = "for", value_name = "TIME", conflicts_with = "off")]
        lasting: Option<Span>,
        /// Put the rule in force again at once.
        #[arg(long)]
        off: bool,
        #[command(flatten)]
        shown: Shown,
    },
    /// Forget what is known of a client, and show what remains.
    ///
    /// It forgets the client's score and history, what limits have counted under its network or
    /// pool alone, and its proof by greylisting, which the client has to earn again. Use `allow`
    /// for a client that must get through at once.
    Forget {
        /// The client's address.
        #[arg(value_name = "CLIENT")]
        client: IpAddr,
        #[command(flatten)]
        shown: Shown,
    },
    /// Exempt a client for a time, as if it were in the allowlist.
    ///
    /// The exemption acts at once, overrides the denylist, ends by itself, and survives a restart
    /// of the daemon. `ctl status` lists the exemptions.
    Allow {
        /// The client's address, or a network: 192.0.2.0/24.
        #[arg(value_name = "CLIENT")]
        client: String,
        /// How long: "12h", "7d"; 90d at most [default: 7d].
        #[arg(long = "for", value_name = "TIME", conflicts_with = "off")]
        lasting: Option<Span>,
        /// End the exemption at once.
        #[arg(long)]
        off: bool,
        /// Exempt even a network wider than /8, or than /19 of IPv6.
        #[arg(long, conflicts_with = "off")]
        force: bool,
        #[command(flatten)]
        shown: Shown,
    },
}

#[derive(Subcommand)]
pub enum Bypass {
    /// Put every rule into shadow mode, access, load and maintenance too: no client is refused.
    ///
    /// Rules still count, and log what they would have refused, with mode=shadow. Sessions that
    /// are already refused may go on. The bypass ends by itself, and when the daemon restarts. A
    /// second command replaces the end.
    On {
        /// How long: "10m", "2h"; 1d at most [default: 1h].
        #[arg(long = "for", value_name = "TIME")]
        lasting: Option<Span>,
        #[command(flatten)]
        shown: Shown,
    },
    /// Put the rules in force again.
    Off(Shown),
}

#[derive(Subcommand)]
pub enum Maintenance {
    /// Refuse new sessions with 421 4.3.2 and the time that is left.
    ///
    /// Running sessions may finish. Maintenance ends by itself, and survives a restart of the
    /// daemon. Clients in `[maintenance] allow` are still served. A second command replaces the
    /// end.
    On {
        /// How long: "90s", "30m", "2h"; 7d at most [default: 1h]. After 4 hours sending hosts warn
        /// their users; after 4 or 5 days mail bounces.
        #[arg(long = "for", value_name = "TIME", conflicts_with = "until")]
        lasting: Option<Span>,
        /// The end, in RFC 3339: 2026-11-21T22:07:20Z, or with +01:00 in place of Z.
        #[arg(long, value_name = "TIME")]
        until: Option<Time>,
        #[command(flatten)]
        at: At,
        #[command(flatten)]
        shown: Shown,
    },
    /// Accept new sessions again.
    ///
    /// This ends all maintenance, including that of `[maintenance] until`; with --listener, only
    /// the maintenance of that listener.
    Off {
        #[command(flatten)]
        at: At,
        #[command(flatten)]
        shown: Shown,
    },
}

#[derive(Args)]
pub struct At {
    /// Only sessions on this listener, named by its address in `[[listen]]`.
    #[arg(long, value_name = "ADDRESS")]
    pub listener: Option<String>,
}

#[derive(Args)]
pub struct Detailed {
    /// Show everything, including what is normal.
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub shown: Shown,
}

#[derive(Args)]
pub struct Shown {
    /// Print one line of JSON, for programs.
    #[arg(long)]
    pub json: bool,
}

impl Shown {
    fn form(&self) -> Form {
        if self.json { Form::Json } else { Form::Text(Detail::Usual) }
    }
}

impl Detailed {
    /// How the answer is shown.
    pub fn form(&self) -> Form {
        match (self.all, self.shown.form()) {
            (true, Form::Text(_)) => Form::Text(Detail::All),
            (_, form) => form,
        }
    }
}

impl Ctl {
    /// What the daemon is asked, and how its answer is shown.
    pub fn request(self) -> (Request, Form) {
        match self {
            Self::Status(detailed) => (Request::Status {}, detailed.form()),
            Self::Reload(shown) => (Request::Reload {}, shown.form()),
            Self::Maintenance(Maintenance::On { lasting, until, at, shown }) => {
                (Request::MaintenanceOn { lasting, until, listener: at.listener }, shown.form())
            }
            Self::Maintenance(Maintenance::Off { at, shown }) => {
                (Request::MaintenanceOff { listener: at.listener }, shown.form())
            }
            Self::Forget { client, shown } => (Request::Forget { client }, shown.form()),
            Self::Allow { client, off: true, shown, .. } => {
                (Request::AllowOff { client }, shown.form())
            }
            Self::Allow { client, lasting, off: false, force, shown } => {
                (Request::Allow { client, lasting, force }, shown.form())
            }
            Self::Bypass(Bypass::On { lasting, shown }) => {
                (Request::BypassOn { lasting }, shown.form())
            }
            Self::Bypass(Bypass::Off(shown)) => (Request::BypassOff {}, shown.form()),
            Self::Shadow { rule, off: true, shown, .. } => {
                (Request::ShadowOff { rule }, shown.form())
            }
            Self::Shadow { rule, lasting, off: false, shown } => {
                (Request::Shadow { rule, lasting }, shown.form())
            }
        }
    }
}
