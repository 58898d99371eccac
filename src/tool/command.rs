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

/// Tells the wrong sender, for a stated reason and time, to come back later.
///
/// A milter beside Postfix or Sendmail that counts what each client does and answers with
/// temporary rejections when its policy is exceeded.
#[derive(Parser)]
#[command(version, after_long_help = manual::after_help())]
pub struct Cli {
    /// The settings file [default: /etc/postpone/postpone.toml, or built-in settings if there is
    /// none].
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
    /// Serve MTAs until SIGTERM; SIGHUP reads the settings again.
    ///
    /// Stands beside Postfix or Sendmail as a milter, or beside Postfix as a policy service. It
    /// counts what each client does, and when that is more than the settings allow, the client is
    /// told to come back later: by a temporary reply, with a true reason and the seconds to wait.
    /// It never refuses for good, and never reads what is in a message.
    ///
    /// It answers from memory and waits neither for a disk nor for DNS. When it is in trouble
    /// itself, or gone, the mail passes, provided that the MTA is set up so: with
    /// `default_action=accept` for a milter of Postfix, `default_action=DUNNO` for a policy
    /// service, and without `F=` in Sendmail.
    ///
    /// Without a settings file, limits hold that stop floods only, and greylisting refuses nobody.
    /// A rule in shadow mode refuses nobody either: it counts, and logs what it would have refused.
    #[command(after_long_help = manual::after_serve_help())]
    Serve,
    /// Say what is wrong in the settings, each mistake with its line. Exits with 78 if they cannot
    /// be used.
    ///
    /// Warnings tell what may surprise; settings with warnings can be used. No daemon is asked, and
    /// nothing changes: `postpone ctl reload` puts the file in force.
    Check {
        /// Print the settings in force as TOML, every key spelled out.
        #[arg(long)]
        print: bool,
    },
    /// Say what these settings would have said to recorded mail.
    ///
    /// The trace is played under its own clock and from empty memory: one JSON object a line in, one
    /// out. docs/replay.md lists the fields. No daemon is asked, and the same trace gives the same
    /// bytes. Exits with 65 at a line that is no event.
    Replay {
        /// The trace; `-` is standard input.
        #[arg(long, value_name = "FILE|-")]
        events: PathBuf,
    },
    /// Examine, export or fill the state of a stopped daemon.
    ///
    /// The state is in the folder that `--path` names, else in that of the settings. Exits with 74
    /// if it cannot be used: there is none, a daemon is using it, or a later version wrote it.
    State {
        #[command(subcommand)]
        what: State,
        /// The folder of the state [default: the settings' `state.path`].
        #[arg(long, value_name = "DIR", global = true)]
        path: Option<PathBuf>,
    },
    /// Ask the running daemon.
    ///
    /// It is found by `--socket`, else by `[control] socket` in the settings file. Root, the
    /// daemon's own user, the owner of the socket and its group may ask. Exits with 69 if no
    /// daemon answers, with 77 if it does not answer you.
    #[command(subcommand)]
    Ctl(Ctl),
    /// Explain how a client stands, or a decision by its id.
    ///
    /// Says its standing, its score with every term, how fast it may send, what limits have counted,
    /// what greylisting knows, and what would exempt it. Nothing is changed by asking. The daemon is
    /// found as `ctl` finds it.
    Explain {
        /// The client's address, or the id that a reply or a log line has told.
        #[arg(value_name = "CLIENT|ID", required_unless_present = "sender")]
        what: Option<String>,
        /// The client's name, as the MTA would confirm it; unless said, the one that the last
        /// decision about it has told.
        #[arg(long, value_name = "NAME", requires = "what")]
        name: Option<String>,
        /// A sender of this client; without a client, the last decisions about this sender, or about
        /// those of this domain.
        #[arg(long, value_name = "SENDER")]
        sender: Option<String>,
        #[command(flatten)]
        detailed: Detailed,
    },
    /// Show the decisions in the log, one short line each.
    ///
    /// A line has the time, what was done (in parentheses, what a shadow would have done), the client,
    /// the rule, how long it had to wait, the sender, the recipient, and the id that `explain` takes.
    /// Without FILE it is the journal of systemd's unit postpone.
    Log {
        /// A file that the log was written to, in any of its formats; `-` is standard input.
        #[arg(value_name = "FILE|-")]
        file: Option<PathBuf>,
        /// Go on with what is written from now on.
        #[arg(short, long)]
        follow: bool,
        /// From when on: "1h" ago, or 2026-11-21T22:07:20Z.
        #[arg(long, value_name = "TIME")]
        since: Option<Since>,
    },
    /// Put postpone in front of an MTA's incoming mail, or take it out again.
    #[command(subcommand)]
    Setup(Setup),
}

#[derive(Subcommand)]
pub enum Setup {
    /// Show what makes Postfix ask postpone, make that change, or undo it.
    ///
    /// Without --apply or --undo nothing is changed: shown is what Postfix has now, what it would
    /// get, and the `postconf` commands that do it by hand.
    ///
    /// Where postpone listens is taken from `[[listen]]` in the settings. The first milter is put
    /// last in `smtpd_milters`. If there is none, the first policy service is put last in
    /// `smtpd_recipient_restrictions`, but before a closing `permit`, and in
    /// `smtpd_end_of_data_restrictions`. A milter with speak = "mail" is what the submission
    /// services of master.cf get, where that is one clear line; else the lines are shown, and left
    /// to you. Mail passes when postpone does not answer.
    ///
    /// What Postfix has already stays as it is, and to apply twice is as good as once. An entry
    /// that names postpone in other words counts; if it would put mail off while postpone is away,
    /// it is corrected.
    ///
    /// A change is read back, and `postfix check` must accept it, or all is put back as it was;
    /// so also if it is interrupted. Then Postfix is reloaded, if it runs.
    ///
    /// Exits with 0 if it is done or there was nothing to do, with 69 if there is no Postfix or it
    /// could not be reloaded, with 73 if its files cannot be written, with 77 if you are not root,
    /// with 78 if the settings cannot be used or `postfix check` refuses.
    Postfix {
        /// Make the change.
        #[arg(long, conflicts_with = "undo")]
        apply: bool,
        /// Take out every entry that names a listener of the settings, whoever has put it in. A
        /// listener that has got another address meanwhile is not recognised: undo first.
        #[arg(long)]
        undo: bool,
        /// Where main.cf is, if there are several instances of Postfix [default: MAIL_CONFIG in the
        /// environment, else what `postconf -h config_directory` says].
        #[arg(long, value_name = "DIR")]
        postfix: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
pub enum State {
    /// Read everything, and say what is there and what is damaged. Exits with 65 if something is.
    ///
    /// No entry is changed.
    Check,
    /// Write all entries that have not faded as JSON, one to a line.
    ///
    /// The first line has the secret that keys are made with, which they mean nothing without. So
    /// an export is as confidential as the folder itself; a FILE is made readable to its owner
    /// only.
    Export {
        /// Where to; `-` is standard output. A file is replaced when the new one is whole.
        #[arg(default_value = "-")]
        file: PathBuf,
    },
    /// Take in what an export, postgrey or sqlgrey knows.
    ///
    /// What is there is kept: of what both know, the stronger holds. So nothing is lost, and to
    /// import twice is as good as once. At a line that cannot be read it stops with 65; what came
    /// before it is imported.
    ///
    /// Of exports: one made with another secret is taken only where there are no entries yet, as
    /// in a new folder, which is made.
    ///
    /// Of postgrey: text that db_dump makes (Debian's package db5.3-util), of one database and
    /// then of the other. Without -h, what postgrey has not sorted in yet is missing:
    ///
    ///     db5.3_dump -h /var/lib/postgrey -p postgrey.db | postpone state import -
    ///     db5.3_dump -h /var/lib/postgrey -p postgrey_clients.db | postpone state import -
    ///
    /// Of sqlgrey: what dumps its database as SQL, so one of
    ///
    ///     sqlite3 /var/lib/sqlgrey/sqlgrey.db .dump | postpone state import -
    ///     mysqldump sqlgrey | postpone state import -
    ///     pg_dump --inserts sqlgrey | postpone state import -
    ///
    /// Taken in is what has passed them: postgrey's triplets that had waited for
    /// `greylist.delay`, its clients with `greylist.proven_after` passes, sqlgrey's senders and
    /// domains. Each is forgotten `greylist.forget` after it was last seen there.
    #[command(verbatim_doc_comment)]
    Import {
        /// Where from; `-` is standard input.
        file: PathBuf,
    },
}

#[derive(Subcommand)]
pub enum Ctl {
    /// Say how the daemon is: settings, load, what was refused by which rule, own trouble, state.
    Status(Detailed),
    /// Read the settings again, and say what is wrong with them.
    ///
    /// The lists that they name are read, too. A bad file changes nothing; it exits with 78 then.
    /// What takes effect only at a restart is named. A session keeps the policy it began with.
    Reload(Shown),
    /// Put off new sessions for a while, or let them in again.
    #[command(subcommand)]
    Maintenance(Maintenance),
    /// Let everything pass for a while, or let the rules hold again.
    #[command(subcommand)]
    Bypass(Bypass),
    /// Make a shadow of one rule for a while: it refuses nobody.
    ///
    /// It goes on to count, and logs what it would have refused, with mode=shadow. It ends by
    /// itself, and with the daemon. Said again, it gets another end.
    Shadow {
        /// The limit's name, or access, maintenance, load, greylist or behaviour.
        #[arg(value_name = "LIMIT")]
        rule: String,
        /// How long: "30m", "2h"; 7d at most. Unless said, an hour.
        #[arg(long = "for", value_name = "TIME", conflicts_with = "off")]
        lasting: Option<Span>,
        /// It holds again at once.
        #[arg(long)]
        off: bool,
        #[command(flatten)]
        shown: Shown,
    },
    /// Forget what is known of a client, and say what was left.
    ///
    /// How it has behaved, what limits have counted under its network alone, and that greylisting
    /// has proven it. It has to earn all of that again: who must get through at once needs `allow`.
    Forget {
        /// Its address.
        #[arg(value_name = "CLIENT")]
        client: IpAddr,
        #[command(flatten)]
        shown: Shown,
    },
    /// Exempt a client for a while, as if it stood on the allowlist.
    ///
    /// It holds at once, comes before the denylist, ends by itself, and outlives a restart of the
    /// daemon. `ctl status` lists who is allowed.
    Allow {
        /// Its address, or a network: 192.0.2.0/24.
        #[arg(value_name = "CLIENT")]
        client: String,
        /// How long: "12h", "7d"; 90d at most. Unless said, 7d.
        #[arg(long = "for", value_name = "TIME", conflicts_with = "off")]
        lasting: Option<Span>,
        /// End it at once.
        #[arg(long)]
        off: bool,
        /// Even a network wider than /8, or than /19 of IPv6.
        #[arg(long, conflicts_with = "off")]
        force: bool,
        #[command(flatten)]
        shown: Shown,
    },
}

#[derive(Subcommand)]
pub enum Bypass {
    /// Refuse nobody: every rule is a shadow, access, load and maintenance too.
    ///
    /// Rules go on to count, and log what they would have refused, with mode=shadow. Sessions that
    /// are refused already may go on. It ends by itself, and with the daemon: after a restart the
    /// settings hold. Said again, it gets another end.
    On {
        /// How long: "10m", "2h"; 1d at most. Unless said, an hour.
        #[arg(long = "for", value_name = "TIME")]
        lasting: Option<Span>,
        #[command(flatten)]
        shown: Shown,
    },
    /// Let the rules hold again.
    Off(Shown),
}

#[derive(Subcommand)]
pub enum Maintenance {
    /// Put off new sessions: 421 4.3.2, with the time that is left.
    ///
    /// Running ones may finish. It ends by itself, and outlives a restart of the daemon. Clients in
    /// `[maintenance] allow` are served all the same. Said again, it gets another end.
    On {
        /// How long: "90s", "30m", "2h"; 7d at most. Unless said, an hour. Beyond 4h senders'
        /// users are warned by their own hosts; after 4 or 5 days mail is given back.
        #[arg(long = "for", value_name = "TIME", conflicts_with = "until")]
        lasting: Option<Span>,
        /// Until when, in RFC 3339: 2026-11-21T22:07:20Z, or with +01:00 in place of Z.
        #[arg(long, value_name = "TIME")]
        until: Option<Time>,
        #[command(flatten)]
        at: At,
        #[command(flatten)]
        shown: Shown,
    },
    /// Let new sessions in again.
    ///
    /// It ends all of it, also what `[maintenance] until` has begun; or only what was begun for one
    /// listener.
    Off {
        #[command(flatten)]
        at: At,
        #[command(flatten)]
        shown: Shown,
    },
}

#[derive(Args)]
pub struct At {
    /// Only sessions that come by this listener, named by its address in `[[listen]]`.
    #[arg(long, value_name = "ADDRESS")]
    pub listener: Option<String>,
}

#[derive(Args)]
pub struct Detailed {
    /// Show everything that is known, also what is as it should be.
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
