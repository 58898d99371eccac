//! `postpone ctl`: asks the running daemon, and says what it answers.

use std::fmt::{self, Display, Formatter};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::dial::dial;
use super::explain::{explained, of_sender};
use super::lines::ending;
use super::outcome::{error, unwritten};
pub use super::status::Detail;
use super::status::{status, time_and_rest};
use crate::clock::Stopwatch;
use crate::config::Control;
use crate::exit;
use crate::front::control::protocol::{
    AllowedNow, Answer, Forgot, Kind, LiftedNow, Maintained, Reloaded, Request, Trouble,
};
use crate::front::control::status::whole;
use crate::setting::OrNone;
use crate::smtp::harmless::harmless;

/// How long the daemon may take. It answers within milliseconds, but for what is to be on disk.
const PATIENCE: Duration = Duration::from_secs(15);

/// The longest answer that is taken, in bytes: a status with hundreds of limits has some hundred
/// thousand.
const LONGEST: usize = 8 << 20;

/// Where the daemon is found.
pub struct Place<'a> {
    /// The socket itself, with or without `unix:`.
    pub socket: Option<&'a Path>,
    /// The settings that name it.
    pub file: Option<&'a Path>,
}

/// How an answer is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// For people.
    Text(Detail),
    /// As one line of JSON.
    Json,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Failed {
    /// The settings do not say where the daemon is.
    Settings(PathBuf, io::Error),
    /// The settings want no control socket.
    NoSocket,
    /// Nobody answers there.
    Nobody(PathBuf, io::Error),
    /// What answers is no daemon of this version.
    Strange(PathBuf, String),
    /// The daemon says why not.
    Said(Trouble),
    /// Nobody reads what we say.
    Output(io::Error),
}

impl Failed {
    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Settings(..) => exit::SETTINGS,
            Self::Nobody(_, error) if error.kind() == ErrorKind::PermissionDenied => {
                exit::PERMISSION
            }
            Self::NoSocket | Self::Nobody(..) => exit::UNAVAILABLE,
            Self::Strange(..) => exit::PROTOCOL,
            Self::Said(Trouble { kind, .. }) => match kind {
                Kind::Request => exit::PROTOCOL,
                Kind::Value => exit::DATA,
                Kind::Permission => exit::PERMISSION,
                Kind::Unavailable => exit::UNAVAILABLE,
            },
            Self::Output(_) => exit::STATE,
        }
    }
}

impl Display for Failed {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Settings(file, error) => write!(f, "{}: {error}", file.display()),
            Self::NoSocket => f.write_str("the settings have no control socket: it is \"none\""),
            Self::Nobody(path, error) if error.kind() == ErrorKind::PermissionDenied => {
                write!(f, "you may not use {}: {error}", path.display())
            }
            Self::Nobody(path, error) => {
                write!(f, "no daemon answers at {}: {error}", path.display())
            }
            Self::Strange(path, what) => {
                write!(
                    f,
                    "the answer at {} is not from this version of postpone: {}",
                    path.display(),
                    harmless(what)
                )
            }
            // Whoever answers there need not be our daemon.
            Self::Said(trouble) => {
                let said = trouble.to_string();
                let lines: Vec<_> = said.lines().map(harmless).collect();
                f.write_str(&lines.join("\n"))
            }
            Self::Output(error) => write!(f, "{error}"),
        }
    }
}

/// Asks, and says what is answered: to `out` what was asked for, to `err` what may surprise.
/// Returns the exit code.
pub fn ctl(
    place: &Place<'_>,
    request: &Request,
    form: Form,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let done = place.path().and_then(|path| ask(&path, request));
    let told = done.and_then(|answer| tell(answer, form, out, err).map_err(Failed::Output));
    told.unwrap_or_else(|failed| {
        if let Failed::Output(why) = &failed {
            return unwritten(err, why);
        }
        error(err, &failed);
        failed.code()
    })
}

impl Place<'_> {
    fn path(&self) -> Result<PathBuf, Failed> {
        if let Some(socket) = self.socket {
            return Ok(socket
                .to_str()
                .and_then(|text| text.strip_prefix("unix:"))
                .map_or_else(|| socket.into(), PathBuf::from));
        }
        let socket = match self.file {
            None => Control::default().socket,
            Some(file) => {
                let text = std::fs::read_to_string(file);
                Control::socket_in(&text.map_err(|error| Failed::Settings(file.into(), error))?)
            }
        };
        match socket {
            OrNone::Some(socket) => Ok(socket.path().into()),
            OrNone::None => Err(Failed::NoSocket),
        }
    }
}

/// Asks one thing.
fn ask(path: &Path, request: &Request) -> Result<Answer, Failed> {
    let nobody = |error| Failed::Nobody(path.into(), error);
    let strange = |error: serde_json::Error| Failed::Strange(path.into(), error.to_string());
    let begun = Stopwatch::start();
    let mut stream = dial(path, PATIENCE).map_err(nobody)?;
    let mut line = serde_json::to_vec(request).map_err(strange)?;
    line.push(b'\n');
    // Who turns us away does so before it reads; it has said why.
    let written = stream.write_all(&line);
    let mut answer = Vec::new();
    match line_of(&mut stream, &mut answer, begun) {
        Ok(1..) => {}
        Ok(0) => {
            let gone = written.err().unwrap_or_else(|| ErrorKind::UnexpectedEof.into());
            return Err(nobody(gone));
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            return Err(nobody(io::Error::new(ErrorKind::TimedOut, "it does not answer")));
        }
        Err(error) => return Err(nobody(error)),
    }
    match serde_json::from_slice(&answer).map_err(strange)? {
        Answer::Error(trouble) => Err(Failed::Said(trouble)),
        answer => Ok(answer),
    }
}

/// Reads a line, however slowly it comes within [`PATIENCE`] and however long it is up to
/// [`LONGEST`].
fn line_of(stream: &mut UnixStream, line: &mut Vec<u8>, begun: Stopwatch) -> io::Result<usize> {
    let mut piece = [0; 16 << 10];
    while !line.ends_with(b"\n") {
        let rest = PATIENCE.saturating_sub(begun.elapsed());
        if rest.is_zero() {
            return Err(ErrorKind::WouldBlock.into());
        }
        stream.set_read_timeout(Some(rest))?;
        let read = match stream.read(&mut piece) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            read => read?,
        };
        line.extend(&piece[..read]);
        if line.len() > LONGEST {
            return Err(io::Error::new(ErrorKind::InvalidData, "its answer has no end"));
        }
        if read == 0 {
            break;
        }
    }
    Ok(line.len())
}

fn tell(answer: Answer, form: Form, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<u8> {
    let code = match &answer {
        Answer::Reload(Reloaded { done: false, .. }) => exit::SETTINGS,
        _ => 0,
    };
    match (form, answer) {
        (Form::Json, answer) => writeln!(out, "{}", bare(&answer)?)?,
        (Form::Text(detail), Answer::Explained(told)) => {
            write!(out, "{}", explained(&told, detail))?;
        }
        (Form::Text(_), Answer::Sender(told)) => write!(out, "{}", of_sender(&told))?,
        (Form::Text(_), Answer::Forgotten(told)) => tell_forgotten(&told, out, err)?,
        (Form::Text(_), Answer::Allowed(told)) => tell_allowed(&told, out, err)?,
        (Form::Text(detail), Answer::Status(told)) => {
            write!(out, "{}", status(&told, detail))?;
        }
        (Form::Text(_), Answer::Reload(told)) => tell_reload(&told, out, err)?,
        (Form::Text(_), Answer::Maintenance(told)) => tell_maintenance(&told, out, err)?,
        (Form::Text(_), Answer::Lifted(told)) => tell_lifted(&told, out, err)?,
        // Told already.
        (Form::Text(_), Answer::Error(_)) => {}
    }
    out.flush()?;
    Ok(code)
}

/// An answer without the name that tells it from others.
fn bare(answer: &Answer) -> io::Result<serde_json::Value> {
    let named = serde_json::to_value(answer)?;
    Ok(match named {
        serde_json::Value::Object(named) => named.into_values().next().unwrap_or_default(),
        bare => bare,
    })
}

fn tell_lifted(told: &LiftedNow, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<()> {
    told.warnings.iter().try_for_each(|warning| writeln!(err, "warning: {warning}"))?;
    let when = told.until.map(|until| ending(until, told.now));
    match (&told.rule, when) {
        (None, Some(when)) => writeln!(
            out,
            "bypass {when}: everything passes\n\
             access, load and maintenance refuse no client either; the log says what would\n\
             have been refused\n\
             it ends by itself, by `postpone ctl bypass off`, and when the daemon is restarted"
        ),
        (None, None) => writeln!(out, "no bypass: the rules are in force again"),
        (Some(rule), Some(when)) => writeln!(
            out,
            "{rule} is in shadow mode {when}\n\
             it refuses no client; the log says what it would have refused\n\
             it ends by itself, by `postpone ctl shadow {rule} --off`,\n\
             and when the daemon is restarted"
        ),
        (Some(rule), None) => writeln!(out, "{rule} is in force again, as the settings say"),
    }
}

fn tell_reload(told: &Reloaded, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<()> {
    write!(err, "{}", told.report)?;
    if !told.done {
        return writeln!(err, "error: {}: not reloaded, nothing has changed", told.file);
    }
    writeln!(out, "{}: reloaded", told.file)?;
    writeln!(out, "{}", told.in_force)?;
    if !told.restart.is_empty() {
        writeln!(out, "takes effect only at a restart: {}", told.restart.join(", "))?;
    }
    Ok(())
}

fn tell_forgotten(told: &Forgot, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<()> {
    told.warnings.iter().try_for_each(|warning| writeln!(err, "warning: {warning}"))?;
    if told.forgotten.is_empty() {
        writeln!(out, "{}: nothing to forget", told.client)?;
    }
    for forgotten in &told.forgotten {
        writeln!(out, "{}: forgotten: {forgotten}", told.client)?;
    }
    told.left.iter().try_for_each(|left| writeln!(out, "{}: not forgotten: {left}", told.client))
}

fn tell_allowed(told: &AllowedNow, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<()> {
    told.warnings.iter().try_for_each(|warning| writeln!(err, "warning: {warning}"))?;
    let Some(until) = told.until else {
        return writeln!(out, "{} is no longer allowed", told.network);
    };
    let restart = if told.kept { "a restart does not end it" } else { "a restart ends it" };
    writeln!(out, "{} is allowed until {}; {restart}", told.network, whole(until))
}

fn tell_maintenance(told: &Maintained, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<()> {
    let name = |listener: &Option<String>| match listener {
        Some(listener) => listener.clone(),
        None => "all listeners".to_owned(),
    };
    for warning in &told.warnings {
        writeln!(err, "warning: {warning}")?;
    }
    for ended in &told.ended {
        writeln!(out, "maintenance of {} has ended", name(&ended.listener))?;
    }
    for closed in &told.now {
        let (listener, until) = (name(&closed.listener), time_and_rest(closed));
        writeln!(out, "maintenance of {listener} until {until}")?;
    }
    if told.now.is_empty() {
        writeln!(out, "no maintenance: new sessions are accepted")?;
    } else if told.kept {
        writeln!(out, "running sessions may finish; a restart does not end it")?;
    } else {
        writeln!(out, "running sessions may finish; a restart ends it, since it is not on disk")?;
    }
    Ok(())
}
