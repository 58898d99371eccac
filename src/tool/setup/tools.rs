//! Postfix's own programs: `postconf` reads and edits its files, `postfix` checks them and tells
//! the daemons. What `plan` has decided is done here, all of it or nothing.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::fs::OFlags;
use rustix::process::geteuid;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

use super::Failed;
use super::installed::{Installed, is_ancient, parameters, services};
use super::plan::{Change, Plan};

/// Where the programs of the system are, for a `PATH` without them.
const FOLDERS: [&str; 2] = ["/usr/sbin", "/usr/local/sbin"];

/// The first version whose lists have braces, and so an action of their own.
const OLDEST: u32 = 3;

/// Postfix's programs, and the instance they are asked about.
pub(super) struct Tools {
    postconf: PathBuf,
    postfix: PathBuf,
    pub(super) folder: PathBuf,
}

/// Whether the daemons know of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// They have been told.
    Now,
    /// They do not run.
    AtStart,
}

impl Tools {
    /// Finds the programs; the folder is that of the one Postfix there is, unless it is named, to
    /// us or as Postfix's own programs have it named.
    pub(super) fn find(folder: Option<&Path>) -> Result<Self, Failed> {
        let mut tools = Self {
            postconf: program("postconf")?,
            postfix: program("postfix")?,
            folder: PathBuf::new(),
        };
        tools.folder = match folder {
            Some(folder) => {
                std::path::absolute(folder).map_err(|e| Failed::Settings(e.to_string()))?
            }
            None => match env::var_os("MAIL_CONFIG") {
                Some(folder) => folder.into(),
                None => tools.said(&["-h", "config_directory"])?.trim().into(),
            },
        };
        Ok(tools)
    }

    /// Asks Postfix for all it can say of itself.
    pub(super) fn read(&self) -> Result<Installed, Failed> {
        let raw = parameters(&self.asked(&[])?);
        let version = raw.get("mail_version").cloned().unwrap_or_default();
        let number = version.split('.').next().and_then(|number| number.parse::<u32>().ok());
        if number.is_some_and(|number| number < OLDEST) {
            return Err(Failed::Missing(format!(
                "Postfix {version} cannot let mail pass when a milter is away: version {OLDEST}.0 \
                 or newer is required"
            )));
        }
        let mut expanded = parameters(&self.asked(&["-x"])?);
        // Debian's is the name of a file with the name.
        if let Some(origin) = expanded.get_mut("myorigin").filter(|origin| origin.starts_with('/'))
        {
            let text = fs::read_to_string(&*origin).unwrap_or_default();
            *origin = text.lines().next().unwrap_or_default().trim().to_owned();
        }
        let named = parameters(&self.asked(&["-n"])?).into_keys().collect::<BTreeSet<_>>();
        let by_default = expanded.get("compatibility_level").is_some_and(|level| is_ancient(level));
        let services = services(&self.asked(&["-M"])?, &self.asked(&["-Px"])?, by_default);
        Ok(Installed { raw, expanded, named, services })
    }

    /// The commands that make the changes, in the order that leaves no reference without its
    /// parameter: what postconf(1) takes after its own name.
    pub(super) fn commands(&self, plan: &Plan) -> Vec<Vec<String>> {
        let folder = self.folder.display().to_string();
        let kinds = [
            ("-PX", &plan.services, false),
            ("-e", &plan.parameters, true),
            ("-X", &plan.parameters, false),
            ("-P", &plan.services, true),
        ];
        let mut commands = Vec::new();
        for (option, changes, sets) in kinds {
            let chosen = changes.iter().filter(|change| change.becomes.is_some() == sets);
            let said: Vec<_> = chosen.map(assignment).collect();
            if !said.is_empty() {
                let head = ["-c".to_owned(), folder.clone(), option.to_owned()];
                commands.push(head.into_iter().chain(said).collect());
            }
        }
        commands
    }

    /// Makes the changes, and has Postfix check them. Whatever goes wrong, both files are then what
    /// they were before.
    pub(super) fn write(&self, plan: &Plan) -> Result<Known, Failed> {
        if !geteuid().is_root() {
            return Err(Failed::Permission);
        }
        let _held = hold_signals().map_err(|error| Failed::Output(error.to_string()))?;
        let main = (!plan.parameters.is_empty()).then_some("main.cf");
        let master = (!plan.services.is_empty()).then_some("master.cf");
        let kept = main.into_iter().chain(master).map(|name| Kept::read(&self.folder.join(name)));
        let kept = kept.collect::<Result<Vec<_>, _>>()?;
        // Or what is wrong already would look like our doing.
        self.check().map_err(|said| {
            Failed::Refused(format!(
                "nothing has been changed: `postfix check` refuses the present \
                 configuration:\n{said}"
            ))
        })?;
        self.make(plan, &kept).map_err(|failed| {
            // All of them are tried, also when one cannot be written.
            let lost: Vec<_> = kept.iter().filter_map(|file| file.put_back().err()).collect();
            match lost.first() {
                None => failed,
                Some(error) => Failed::Output(format!(
                    "{failed}\nthe old files could not be restored: {error}"
                )),
            }
        })?;
        self.tell()
    }

    fn make(&self, plan: &Plan, kept: &[Kept]) -> Result<(), Failed> {
        for command in self.commands(plan) {
            let command: Vec<&str> = command.iter().map(String::as_str).collect();
            self.said(&command).map_err(|failed| match failed {
                Failed::Settings(said) => Failed::Output(said),
                failed => failed,
            })?;
        }
        // postconf writes new files, with an owner and permissions of its own.
        kept.iter()
            .try_for_each(Kept::give_back_owner)
            .map_err(|error| Failed::Output(error.to_string()))?;
        self.compare(plan)?;
        self.check().map_err(|said| {
            Failed::Refused(format!(
                "`postfix check` refuses the change, so the files are restored:\n{said}"
            ))
        })
    }

    /// Reads back what has been written.
    fn compare(&self, plan: &Plan) -> Result<(), Failed> {
        let now = self.read()?;
        for change in &plan.parameters {
            let reads = now.named.contains(&change.name).then(|| now.raw(&change.name));
            // What main.cf names and no service uses is not listed.
            let reads = reads.or_else(|| now.raw.get(&change.name).map(String::as_str));
            if change.becomes.is_some() && reads != change.becomes.as_deref() {
                let reads = reads.unwrap_or("nothing");
                return Err(Failed::Output(format!(
                    "{} was written, but now reads {reads}",
                    change.name
                )));
            }
            if change.becomes.is_none() && now.named.contains(&change.name) {
                return Err(Failed::Output(format!(
                    "{} was removed, but is still there",
                    change.name
                )));
            }
        }
        let options = self.asked(&["-P"])?;
        let options = parameters(&options);
        let differs = plan
            .services
            .iter()
            .find(|change| options.get(&change.name) != change.becomes.as_ref());
        match differs {
            Some(change) => Err(Failed::Output(format!("{} is not what was written", change.name))),
            None => Ok(()),
        }
    }

    /// `postfix check`: what it complains of.
    fn check(&self) -> Result<(), String> {
        match self.postfix("check") {
            Ok((true, _)) => Ok(()),
            Ok((false, said)) if said.is_empty() => Err("it gave no reason".into()),
            Ok((false, said)) => Err(said),
            Err(error) => Err(format!("{}: {error}", self.postfix.display())),
        }
    }

    /// Tells the daemons, if they run.
    fn tell(&self) -> Result<Known, Failed> {
        let runs = self.postfix("status").is_ok_and(|(runs, _)| runs);
        if !runs {
            return Ok(Known::AtStart);
        }
        match self.postfix("reload") {
            Ok((true, _)) => Ok(Known::Now),
            Ok((false, said)) => Err(Failed::Untold(said)),
            Err(error) => Err(Failed::Untold(error.to_string())),
        }
    }

    /// Runs postfix(1): whether it was content, and what it said.
    fn postfix(&self, what: &str) -> io::Result<(bool, String)> {
        let mut command = quiet(&self.postfix);
        command.arg("-c").arg(&self.folder).arg(what);
        on_a_terminal(command)
    }

    /// What postconf says of this instance.
    pub(super) fn asked(&self, arguments: &[&str]) -> Result<String, Failed> {
        let folder = self
            .folder
            .to_str()
            .ok_or_else(|| Failed::Settings("a path that is no text".into()))?;
        self.said(&[&["-c", folder], arguments].concat())
    }

    fn said(&self, arguments: &[&str]) -> Result<String, Failed> {
        let output = quiet(&self.postconf).args(arguments).output();
        let Output { status, stdout, stderr } = output
            .map_err(|error| Failed::Missing(format!("{}: {error}", self.postconf.display())))?;
        if status.success() {
            return Ok(String::from_utf8_lossy(&stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&stderr);
        Err(Failed::Settings(
            format!("{}: {status}\n{said}", self.postconf.display()).trim().to_owned(),
        ))
    }
}

/// A file as it was.
struct Kept {
    path: PathBuf,
    bytes: Vec<u8>,
    mode: u32,
    owner: (u32, u32),
}

impl Kept {
    fn read(path: &Path) -> Result<Self, Failed> {
        let wrong = |error: io::Error| Failed::Output(format!("{}: {error}", path.display()));
        let metadata = fs::symlink_metadata(path).map_err(wrong)?;
        if metadata.is_symlink() {
            let why = "is a symbolic link, which postconf would replace by a file";
            return Err(Failed::Output(format!(
                "{} {why}: nothing has been changed",
                path.display()
            )));
        }
        let bytes = fs::read(path).map_err(wrong)?;
        let owner = (metadata.uid(), metadata.gid());
        Ok(Self { path: path.to_owned(), bytes, mode: metadata.mode() & 0o7777, owner })
    }

    fn give_back_owner(&self) -> io::Result<()> {
        self.own(&self.path)
    }

    fn own(&self, path: &Path) -> io::Result<()> {
        chown(path, Some(self.owner.0), Some(self.owner.1))?;
        fs::set_permissions(path, Permissions::from_mode(self.mode))
    }

    /// Whoever reads the file meanwhile sees the one or the other, never a part.
    fn put_back(&self) -> io::Result<()> {
        if fs::read(&self.path).is_ok_and(|bytes| bytes == self.bytes) {
            return self.give_back_owner();
        }
        let beside = self.path.with_extension("cf.postpone");
        // Nobody reads it before it has its owner.
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(&self.bytes)?;
        file.sync_all()?;
        self.own(&beside)?;
        fs::rename(&beside, &self.path)
    }
}

fn assignment(change: &Change) -> String {
    match &change.becomes {
        Some(value) => format!("{}={value}", change.name),
        None => change.name.clone(),
    }
}

fn program(name: &str) -> Result<PathBuf, Failed> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(FOLDERS.map(PathBuf::from));
    let mut places = folders.filter(|folder| folder.is_absolute()).map(|folder| folder.join(name));
    let found =
        places.find(|path| path.metadata().is_ok_and(|m| m.is_file() && m.mode() & 0o111 != 0));
    found.ok_or_else(|| Failed::Missing(format!("there is no {name} here: is Postfix installed?")))
}

/// From here on, who presses ^C ends the program that we wait for and not us: then its change has
/// failed, and what was there is put back. It holds until this process ends.
fn hold_signals() -> io::Result<Runtime> {
    let runtime = Builder::new_current_thread().enable_io().build()?;
    let entered = runtime.enter();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        // Nobody listens: that there is a handler is all.
        drop(signal(kind)?);
    }
    drop(entered);
    Ok(runtime)
}

/// A program that says the same whoever runs it: Postfix's would take another folder from
/// MAIL_CONFIG than they are told; what it names, we tell them ourselves.
fn quiet(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for variable in ["MAIL_CONFIG", "MAIL_DEBUG", "MAIL_VERBOSE", "MAIL_LOGTAG"] {
        command.env_remove(variable);
    }
    command.env("LC_ALL", "C").stdin(Stdio::null());
    command
}

/// Runs a command whose standard error is a terminal: without one, Postfix's script says only to
/// the log what is wrong.
fn on_a_terminal(mut command: Command) -> io::Result<(bool, String)> {
    let Ok((mut ours, theirs)) = terminal() else {
        let output = command.output()?;
        let said = [output.stdout, output.stderr].concat();
        return Ok((output.status.success(), String::from_utf8_lossy(&said).trim().to_owned()));
    };
    let mut child = command.stdout(theirs.try_clone()?).stderr(theirs).spawn()?;
    // It holds the other end as well, and we would never read to its end.
    drop(command);
    let mut said = Vec::new();
    // On Linux the end is told as an error: nobody holds the other side any more.
    let _ = ours.read_to_end(&mut said);
    let said = String::from_utf8_lossy(&said).replace('\r', "");
    Ok((child.wait()?.success(), said.trim().to_owned()))
}

/// Both sides of a new terminal, which is nobody's controlling one.
fn terminal() -> io::Result<(File, File)> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?;
    let no_control = i32::try_from(OFlags::NOCTTY.bits()).map_err(io::Error::other)?;
    let name = name.to_str().map_err(io::Error::other)?;
    let theirs = OpenOptions::new().read(true).write(true).custom_flags(no_control).open(name)?;
    Ok((File::from(ours), theirs))
}
