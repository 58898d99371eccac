//! `postpone`: from the command line to a subcommand, and its outcome to an exit code.

use std::fs;
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use postpone::clock::{Clock, SystemClock};
use postpone::config::{Checked, Settings, Unusable};
use postpone::daemon;
use postpone::exit;
use postpone::front::control::protocol::Request;
use postpone::tool;
use postpone::tool::check::{Verdict, check};
use postpone::tool::command::{Cli, Command, DEFAULT_FILE, Setup, State};
use postpone::tool::ctl::{self, Form, ctl};
use postpone::tool::log::{self, Since};
use postpone::tool::outcome::{error, unwritten};
use postpone::tool::setup::{self, Wanted};
use postpone::tool::state::{self, Place, Trouble};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return say(&error),
    };
    let named = cli.config.is_some();
    // A default file that does not exist is none.
    let default = || Some(PathBuf::from(DEFAULT_FILE)).filter(|path| path.exists());
    let file = cli.config.or_else(default);
    match cli.command {
        Command::Serve
        | Command::Check { .. }
        | Command::State { .. }
        | Command::Replay { .. }
        | Command::Log { .. }
        | Command::Setup(_)
            if cli.socket.is_some() =>
        {
            let message = "--socket is for `ctl` and `explain` only; the daemon's own socket is \
                           [control] socket in the settings";
            say(&Cli::command().error(ErrorKind::ArgumentConflict, message))
        }
        Command::Serve => serve(file),
        Command::Replay { events } => replay(file, &events),
        Command::Check { file: named, print } => {
            let file = named.or(file);
            let verdict =
                check(file.as_deref(), print, &mut io::stdout().lock(), &mut io::stderr().lock());
            match verdict {
                Ok(Verdict::Usable) => ExitCode::SUCCESS,
                Ok(Verdict::Unusable) => exit::SETTINGS.into(),
                Err(why) => unwritten(&mut io::stderr(), &why).into(),
            }
        }
        Command::State { what, path } => {
            // Beside a folder that is named, only an import asks for more.
            let needed = path.is_none() || named || matches!(what, State::Import { .. });
            state(&what, path, file.filter(|_| needed))
        }
        Command::Ctl(asked) => {
            let (request, form) = asked.request();
            let place = ctl::Place { socket: cli.socket.as_deref(), file: readable(&file, named) };
            ask(&place, &request, form)
        }
        Command::Explain { what, name, sender, detailed } => {
            let place = ctl::Place { socket: cli.socket.as_deref(), file: readable(&file, named) };
            ask(&place, &Request::Explain { what, name, sender }, detailed.form())
        }
        Command::Log { file, follow, since } => log(file.as_deref(), follow, since),
        Command::Setup(Setup::Postfix { apply, undo, postfix }) => {
            let wanted = match (apply, undo) {
                (true, _) => Wanted::Applied,
                (false, true) => Wanted::Undone,
                (false, false) => Wanted::Shown,
            };
            set_up(file, postfix.as_deref(), wanted)
        }
    }
}

fn ask(place: &ctl::Place<'_>, request: &Request, form: Form) -> ExitCode {
    ctl(place, request, form, &mut io::stdout().lock(), &mut io::stderr().lock()).into()
}

/// The settings file that says where the daemon is. Who may use the socket need not be able to
/// read the default one: then it is the default socket.
fn readable(file: &Option<PathBuf>, named: bool) -> Option<&Path> {
    file.as_deref().filter(|file| named || fs::File::open(file).is_ok())
}

/// Help and version go to standard output, mistakes to standard error.
fn say(error: &clap::Error) -> ExitCode {
    match (error.print(), error.use_stderr()) {
        // Where nobody reads standard error, the exit code must do.
        (_, true) => exit::USAGE.into(),
        (Err(why), false) => unwritten(&mut io::stderr(), &why).into(),
        (Ok(()), false) => ExitCode::SUCCESS,
    }
}

/// The settings in the file, or the built-in ones where there is none. What is wrong with them is
/// said on standard error; nothing comes back if they cannot be used.
fn settings(file: Option<PathBuf>) -> Option<Settings> {
    let read = file.map_or_else(Settings::built_in, |file| Settings::load(&file));
    let (settings, report) = match read {
        Ok(checked) => (Some(checked.settings), checked.report),
        Err(Unusable(report)) => (None, report),
    };
    let _ = write!(io::stderr(), "{report}");
    settings
}

fn log(file: Option<&Path>, follow: bool, since: Option<Since>) -> ExitCode {
    let err = &mut io::stderr();
    let wanted = log::Wanted { file, since, follow, now: SystemClock.now() };
    let shown = log::log(&wanted, &mut io::stdin().lock(), &mut io::stdout().lock());
    let (code, what) = match shown {
        Ok(()) => return ExitCode::SUCCESS,
        Err(log::Failed::Output(why)) => return unwritten(err, &why).into(),
        Err(log::Failed::Input(name, why)) => (exit::STATE, format!("{name}: {why}")),
        Err(log::Failed::Source(name, why)) => (exit::UNAVAILABLE, format!("{name}: {why}")),
    };
    error(err, &what);
    code.into()
}

fn set_up(file: Option<PathBuf>, folder: Option<&Path>, wanted: Wanted) -> ExitCode {
    let Some(settings) = settings(file) else { return exit::SETTINGS.into() };
    setup::postfix(&settings, folder, wanted, &mut io::stdout().lock(), &mut io::stderr()).into()
}

fn replay(file: Option<PathBuf>, events: &Path) -> ExitCode {
    let say = |text: &dyn std::fmt::Display| {
        error(&mut io::stderr(), text);
    };
    let Some(settings) = settings(file) else { return exit::SETTINGS.into() };
    let played = if events.as_os_str() == "-" {
        tool::replay::replay(&settings, &mut io::stdin().lock(), &mut io::stdout().lock())
    } else {
        fs::File::open(events).map_err(tool::replay::Trouble::Io).and_then(|file| {
            tool::replay::replay(&settings, &mut BufReader::new(file), &mut io::stdout().lock())
        })
    };
    match played {
        Ok(()) => ExitCode::SUCCESS,
        Err(tool::replay::Trouble::Line { number, what }) => {
            say(&format_args!("{}:{number}: {what}", events.display()));
            exit::DATA.into()
        }
        Err(tool::replay::Trouble::Settings(complaints)) => {
            complaints.iter().for_each(|complaint| say(&complaint.message));
            exit::SETTINGS.into()
        }
        Err(tool::replay::Trouble::Io(why)) if why.kind() == io::ErrorKind::BrokenPipe => {
            unwritten(&mut io::stderr(), &why).into()
        }
        Err(tool::replay::Trouble::Io(error)) => {
            say(&format_args!("{}: {error}", events.display()));
            exit::STATE.into()
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
        Err(Trouble::Unheard(why)) => return unwritten(err, &why).into(),
        Err(Trouble::Settings(what)) => (exit::SETTINGS, what),
        Err(Trouble::State(what)) => (exit::STATE, what),
        Err(Trouble::Data(what)) => (exit::DATA, what),
        Err(Trouble::Input(what)) => (exit::INPUT, what),
        Err(Trouble::Output(what)) => (exit::OUTPUT, what),
    };
    // A report of settings has its own heads.
    match code {
        exit::SETTINGS if what.starts_with("error: ") || what.starts_with("warning: ") => {
            let _ = writeln!(err, "{}", what.trim_end());
        }
        _ => error(err, &what.trim_end()),
    }
    code.into()
}

fn serve(file: Option<PathBuf>) -> ExitCode {
    let say = |text: &dyn std::fmt::Display| {
        // Where nobody reads standard error, the exit code must do.
        let _ = write!(io::stderr(), "{text}");
    };
    let early = match daemon::Early::new() {
        Ok(early) => early,
        Err(why) => {
            error(&mut io::stderr(), &format_args!("cannot watch signals: {why}"));
            return exit::SYSTEM.into();
        }
    };
    let read = file.as_deref().map_or_else(Settings::built_in, Settings::load);
    match read {
        Ok(Checked { settings, report, named, can_be_taken, .. }) => {
            say(&report);
            // Of what the file names, systemd may hold some: the daemon says it, once it knows.
            if let Some(why) = can_be_taken.filter(|_| !named.listen) {
                say(&format_args!("warning: {why}\n"));
            }
            daemon::serve(early, settings, named, file.unwrap_or_else(|| DEFAULT_FILE.into()))
        }
        Err(Unusable(report)) => {
            say(&report);
            exit::SETTINGS.into()
        }
    }
}
