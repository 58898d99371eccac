//! `postpone`: from the command line to a subcommand, and its outcome to an exit code.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use postpone::config::{Checked, Named, Settings, Unusable};
use postpone::daemon::{self, exit};
use postpone::tool::check::{Verdict, check};

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
    }
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
