//! `postpone setup postfix`: what makes Postfix ask postpone, shown, made or taken out again.
//!
//! Read, decide, write: `tools` asks Postfix's own programs, `plan` and `undo` decide in values,
//! and `tools` has those programs write it. We neither parse nor edit a file of Postfix, but for
//! putting back what was there.
//! Nothing is remembered between `--apply` and `--undo`: what is ours is known by our addresses.

mod installed;
mod knock;
mod list;
mod plan;
mod service;
mod tools;
mod undo;

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::Path;

use self::installed::Installed;
use self::plan::{Doors, Plan};
use self::tools::{Known, Tools};
use super::outcome::{error, unwritten};
use crate::config::Settings;
use crate::exit;
use crate::front::address::Address;
use crate::policy::access::Lists;
use crate::smtp::client::Client;
use crate::smtp::template::is_host_name;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// To see what would change.
    Shown,
    /// To have it made.
    Applied,
    /// To have it taken out.
    Undone,
}

/// Why it was not done.
#[derive(Debug)]
enum Failed {
    /// There is no Postfix, or not one that could.
    Missing(String),
    /// The settings, postpone's or Postfix's, cannot be used.
    Settings(String),
    /// Only root may change Postfix.
    Permission,
    /// Postfix does not take it.
    Refused(String),
    /// The files could not be written.
    Output(String),
    /// It is done, but the daemons could not be told.
    Untold(String),
    /// Nobody reads what we say.
    Unheard(io::Error),
}

impl Failed {
    fn code(&self) -> u8 {
        match self {
            Self::Missing(_) | Self::Untold(_) => exit::UNAVAILABLE,
            Self::Settings(_) | Self::Refused(_) => exit::SETTINGS,
            Self::Permission => exit::PERMISSION,
            Self::Output(_) => exit::OUTPUT,
            Self::Unheard(_) => exit::STATE,
        }
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Unheard(error)
    }
}

impl Display for Failed {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(what)
            | Self::Settings(what)
            | Self::Refused(what)
            | Self::Output(what) => f.write_str(what),
            Self::Permission => {
                f.write_str("only root may change Postfix: nothing has been changed")
            }
            Self::Untold(what) => {
                write!(
                    f,
                    "the change is made, but `postfix reload` failed: it takes effect when \
                     Postfix is restarted:\n{what}"
                )
            }
            Self::Unheard(error) => write!(f, "{error}"),
        }
    }
}

/// What the Postfix that is there calls this host, if it says so.
pub(super) fn host_name() -> Option<String> {
    let name = Tools::find(None).and_then(|tools| tools.asked(&["-h", "myhostname"])).ok()?;
    Some(name.trim().to_owned()).filter(|name| is_host_name(name))
}

/// Does what is wanted with the Postfix in this folder, or the one there is. To `out` goes what was
/// asked for, to `err` what may surprise. Returns the exit code.
pub fn postfix(
    settings: &Settings,
    folder: Option<&Path>,
    wanted: Wanted,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let doors = Doors::new(settings);
    let lists = Lists::of("allow", &settings.access.allow, &settings.client.nat64, |path| {
        fs::read_to_string(path)
    });
    // A list that cannot be read is told of by `check`.
    let allows = |host| lists.as_ref().is_ok_and(|lists| lists.names(&Client::new(host)));
    done(&doors, &allows, folder, wanted, out, err).map_or_else(
        |failed| match failed {
            Failed::Unheard(why) => unwritten(err, &why),
            failed => {
                error(err, &failed);
                failed.code()
            }
        },
        |()| 0,
    )
}

fn done(
    doors: &Doors,
    allows: &dyn Fn(IpAddr) -> bool,
    folder: Option<&Path>,
    wanted: Wanted,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<(), Failed> {
    let tools = Tools::find(folder)?;
    let postfix = tools.read()?;
    let said = Said { tools: &tools, postfix: &postfix };
    let plan = match wanted {
        Wanted::Shown | Wanted::Applied => {
            let queue = postfix.queue();
            if !doors.used().iter().any(|(address, _)| list::endpoint(address, &queue).is_some()) {
                return Err(Failed::Settings(
                    "the settings have no [[listen]] that Postfix could ask: it takes an \
                     address with a fixed port, or a unix socket whose path has no blanks"
                        .into(),
                ));
            }
            let mut plan = Plan::set_up(&postfix, doors);
            plan.warn_of_filters(&postfix, allows);
            plan
        }
        Wanted::Undone => Plan::taken_out(&postfix, doors),
    };
    said.plan(&plan, out, err)?;
    let instances = postfix.expanded("multi_instance_directories");
    if folder.is_none() && !instances.is_empty() {
        writeln!(
            err,
            "warning: there are more instances of Postfix, in {instances}: select one with \
             --postfix"
        )?;
    }
    if wanted != Wanted::Undone {
        said.whether_it_answers(doors, err)?;
    }
    if plan.is_empty() {
        let nothing = match wanted {
            Wanted::Undone => "nothing to undo: Postfix has no entry that --apply adds",
            _ if plan.already.is_empty() => "nothing to do but what is named above",
            _ => "nothing to do: Postfix asks postpone already",
        };
        return Ok(writeln!(out, "{nothing}")?);
    }
    if wanted == Wanted::Shown {
        return Ok(said.commands(&plan, out)?);
    }
    let known = tools.write(&plan)?;
    let done = if wanted == Wanted::Applied {
        "Postfix asks postpone"
    } else {
        "Postfix no longer asks postpone"
    };
    match known {
        Known::Now => writeln!(out, "done and checked: {done}, from the next session on")?,
        Known::AtStart => writeln!(
            out,
            "done and checked: {done}. Postfix is not running; the change holds when it starts"
        )?,
    }
    Ok(())
}

/// What is told of a plan.
struct Said<'a> {
    tools: &'a Tools,
    postfix: &'a Installed,
}

impl Said<'_> {
    fn plan(&self, plan: &Plan, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<()> {
        let version = self.postfix.raw("mail_version");
        writeln!(out, "Postfix {version} in {}", self.tools.folder.display())?;
        for already in &plan.already {
            writeln!(out, "\nalready set up: {already}")?;
        }
        let files = [("main.cf", &plan.parameters), ("master.cf", &plan.services)];
        for (file, changes) in files {
            for change in changes {
                writeln!(out, "\n{} in {file}", change.name)?;
                writeln!(out, "  is       {}", change.is.as_deref().unwrap_or("(not set)"))?;
                writeln!(out, "  becomes  {}", change.becomes.as_deref().unwrap_or("(not set)"))?;
            }
        }
        writeln!(out)?;
        for remark in &plan.remarks {
            writeln!(out, "{remark}")?;
        }
        plan.warnings.iter().try_for_each(|warning| writeln!(err, "warning: {warning}"))
    }

    /// A postmaster who installs may set things up before they run, and mail passes meanwhile: so
    /// an absent postpone stops nothing. But nobody should believe that it throttles.
    fn whether_it_answers(&self, doors: &Doors, err: &mut dyn Write) -> io::Result<()> {
        for (address, kind) in doors.used() {
            if let Err(error) = knock::knock(address, kind) {
                writeln!(
                    err,
                    "warning: postpone does not answer at {address}: {error}. Until it does, mail \
                     passes unchecked"
                )?;
            }
            let user = self.postfix.expanded("mail_owner");
            if let Address::Unix(path) = address
                && !knock::is_open_to(user, path)
            {
                writeln!(
                    err,
                    "warning: Postfix's user {user} may not use {}, so mail would pass unchecked: \
                     set socket_group = \"{user}\" in its [[listen]], and add postpone's user to \
                     that group",
                    path.display()
                )?;
            }
        }
        Ok(())
    }

    /// What a person would run.
    fn commands(&self, plan: &Plan, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "\nthe same by hand:\n")?;
        for command in self.tools.commands(plan) {
            let words: Vec<_> = command.iter().map(|word| quoted(word)).collect();
            writeln!(out, "    postconf {}", words.join(" "))?;
        }
        let folder = quoted(&self.tools.folder.display().to_string());
        writeln!(out, "    postfix -c {folder} check && postfix -c {folder} reload")?;
        writeln!(out, "\nnothing has been changed; --apply makes the change, --undo removes it")
    }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}
