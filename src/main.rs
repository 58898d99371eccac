//! `postpone`: from the command line to a subcommand, and its outcome to an exit code.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use postpone::config::{Checked, Named, Settings, Unusable};
use postpone::daemon::{self, exit};
use postpone::tool::check::{Verdict, check};
use postpone::tool::state::{self, Place, Trouble};

/// Where the settings are when nobody says otherwise.
const DEFAULT_FILE: &str = "/etc/postpone/postpone.toml";

/// Tells the wrong sender, for a stated reason and time, to come back later.
///
/// A milter beside Postfix or Sendmail that counts what each client does and answers with
/// temporary rejections when its policy is exceeded.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve MTAs until SIGTERM; SIGHUP reads the settings again.
    Serve(File),
    /// Say whether settings can be used. Exits with 78 if not.
    Check {
        #[command(flatten)]
        file: File,
        /// Print the settings in force as TOML, every key spelled out.
        #[arg(long)]
        print: bool,
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
        /// The settings file [default: /etc/postpone/postpone.toml, or built-in settings if there
        /// is none].
        #[arg(long, value_name = "FILE", global = true)]
        config: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
enum State {
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

#[derive(Args)]
struct File {
    /// The settings file [default: /etc/postpone/postpone.toml, or built-in settings if there is
    /// none].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl File {
    /// The file to read. A default one that does not exist is none.
    fn path(self) -> Option<PathBuf> {
        self.config.or_else(|| Some(PathBuf::from(DEFAULT_FILE)).filter(|path| path.exists()))
    }
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(file) => serve(file.path()),
        Command::Check { file, print } => {
            let file = file.path();
            let verdict =
                check(file.as_deref(), print, &mut io::stdout().lock(), &mut io::stderr().lock());
            match verdict {
                Ok(Verdict::Usable) => ExitCode::SUCCESS,
                Ok(Verdict::Unusable) => exit::SETTINGS.into(),
                // Nobody reads what we say.
                Err(_) => exit::SYSTEM.into(),
            }
        }
        Command::State { what, path, config } => {
            // Beside a folder that is named, only an import asks for more.
            let needed = path.is_none() || config.is_some() || matches!(what, State::Import { .. });
            let config = if needed { File { config }.path() } else { None };
            state(&what, path, config)
        }
    }
}

fn state(what: &State, path: Option<PathBuf>, config: Option<PathBuf>) -> ExitCode {
    let (out, err) = (&mut io::stdout().lock(), &mut io::stderr());
    let file = |file: &'_ PathBuf| Some(file.clone()).filter(|file| file.as_os_str() != "-");
    let done = Place::find(path, config.as_deref()).and_then(|place| match what {
        State::Check => state::check(&place, out),
        State::Export { file: to } => state::export(&place, file(to).as_deref(), out, err),
        State::Import { file: from } => state::import(&place, file(from).as_deref(), out),
    });
    let (code, what) = match done {
        Ok(()) => return ExitCode::SUCCESS,
        // Nobody reads what we say.
        Err(Trouble::Unheard) => return exit::SYSTEM.into(),
        Err(Trouble::Settings(what)) => (exit::SETTINGS, what),
        Err(Trouble::State(what)) => (exit::STATE, what),
        Err(Trouble::Data(what)) => (exit::DATA, what),
        Err(Trouble::Input(what)) => (exit::INPUT, what),
        Err(Trouble::Output(what)) => (exit::OUTPUT, what),
    };
    let _ = writeln!(err, "{}", what.trim_end());
    code.into()
}

fn serve(file: Option<PathBuf>) -> ExitCode {
    let say = |text: &dyn std::fmt::Display| {
        // Where nobody reads standard error, the exit code must do.
        let _ = write!(io::stderr(), "{text}");
    };
    let Some(file) = file else {
        return daemon::serve(Settings::default(), Named::default(), DEFAULT_FILE.into());
    };
    match Settings::load(&file) {
        Ok(Checked { settings, report, named }) => {
            say(&report);
            daemon::serve(settings, named, file)
        }
        Err(Unusable(report)) => {
            say(&report);
            exit::SETTINGS.into()
        }
    }
}
