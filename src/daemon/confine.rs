//! What the process gives up before it serves anybody: whoever got into it through one of its
//! sockets could do little from there.
//!
//! - It gains no privileges, by whatever it may run (`no_new_privs`).
//! - It keeps no capability, root's neither; but the right to read closed folders, where the
//!   settings want the MTA's queue counted.
//! - Landlock: it writes in the folder of state and nowhere else, removes its own sockets, runs no
//!   program, binds no further TCP port, and reaches no process outside by a signal or an abstract
//!   socket. Where Postfix is to be asked, it runs what is installed. Reading is left to the
//!   permissions of files: a reload may name lists, queues and disks that nobody has heard of yet.
//!
//! All of this is the thread's own and inherited by those it starts, so it comes before any of
//! them. None of it is needed to serve: what the kernel does not have or does not let us do is
//! told, and the mail is served without.

use std::env;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, make_bitflags,
};
use rustix::io::Errno;
use rustix::thread::{self, CapabilitySet, CapabilitySets};
use tracing::{info, warn};

use crate::config::load::{Load, Sensor, Source};

/// The rights that are known and have been tried. What a later kernel could take away besides, it
/// leaves us.
const KNOWN: ABI = ABI::V6;

/// Where programs find what they load, the loader itself among it.
const LIBRARIES: [&str; 4] = ["/lib", "/lib64", "/usr/lib", "/usr/lib64"];

/// Programs that a `PATH` may not name.
const SYSTEM_PROGRAMS: &str = "/usr/sbin";

/// Where a script among them writes what nobody is to read.
const NOWHERE: &str = "/dev/null";

/// What it must still be able to do.
pub(super) struct Needs<'a> {
    /// The folder of state, if any is kept.
    pub(super) state: Option<&'a Path>,
    /// Socket files that are removed at the end.
    pub(super) sockets: &'a [PathBuf],
    /// What is to be read.
    pub(super) load: &'a Load,
}

/// What holds from now on.
pub(super) struct Confined {
    no_new_privs: Result<(), Errno>,
    landlock: Result<Landlock, RulesetError>,
    capabilities: Result<CapabilitySet, Errno>,
    /// Whether the right to read closed folders was given up.
    no_queues: bool,
    /// Whether no program can be run.
    no_programs: bool,
}

/// What the kernel makes of our rules.
struct Landlock {
    enforced: bool,
    words: String,
}

impl Confined {
    /// Confines this thread, and so all that it will start.
    pub(super) fn new(needs: &Needs<'_>) -> Self {
        let wanted = Wanted::by(&needs.load.sensors());
        let mut keep = CapabilitySet::empty();
        keep.set(CapabilitySet::DAC_READ_SEARCH, wanted.queues);
        let had = held();
        // Landlock asks for the first, and looks up folders while we may still enter them.
        let no_new_privs = thread::set_no_new_privs(true);
        let landlock = landlock(needs, wanted.programs);
        let capabilities = give_up_others(keep);
        let has = held();
        Self {
            no_queues: (had - has).contains(CapabilitySet::DAC_READ_SEARCH),
            no_programs: !wanted.programs && landlock.as_ref().is_ok_and(|it| it.enforced),
            no_new_privs,
            landlock,
            capabilities,
        }
    }

    /// Tells what holds, and what does not.
    pub(super) fn tell(&self) {
        let whole = self.no_new_privs.is_ok() && self.capabilities.is_ok() && self.landlock.is_ok();
        let (landlock, capabilities) = (self.landlock_words(), self.capability_words());
        let no_new_privs = self.no_new_privs.is_ok();
        match whole {
            true => info!(landlock, capabilities, no_new_privs, "confined"),
            false => {
                warn!(landlock, capabilities, no_new_privs, "confined only in part")
            }
        }
    }

    /// Sections of other settings that ask for what was given up.
    pub(super) fn refuses(&self, load: &Load) -> Vec<&'static str> {
        let mut sections = Vec::new();
        for sensor in load.sensors() {
            let wanted = Wanted::by(std::slice::from_ref(&sensor));
            let refused = wanted.queues && self.no_queues || wanted.programs && self.no_programs;
            let section =
                if wanted.queues { "[load.queue]" } else { "[load.sessions] from = \"mta\"" };
            if refused && !sections.contains(&section) {
                sections.push(section);
            }
        }
        sections
    }

    fn landlock_words(&self) -> String {
        match &self.landlock {
            Ok(landlock) => landlock.words.clone(),
            Err(error) => format!("refused: {error}"),
        }
    }

    fn capability_words(&self) -> String {
        match self.capabilities {
            Ok(kept) if kept.is_empty() => "none".into(),
            Ok(kept) => names(kept),
            Err(error) => format!("as before: {error}"),
        }
    }
}

/// What sensors ask for.
#[derive(Default)]
struct Wanted {
    /// To read closed folders.
    queues: bool,
    /// To run `postconf`.
    programs: bool,
}

impl Wanted {
    fn by(sensors: &[Sensor]) -> Self {
        let mut wanted = Self::default();
        for sensor in sensors {
            match &sensor.source {
                Source::Queue { root, .. } => {
                    wanted.queues = true;
                    wanted.programs |= root.is_none();
                }
                Source::Sessions { max } => wanted.programs |= max.is_none(),
                _ => {}
            }
        }
        wanted
    }
}

/// capget(2) of ourselves does not fail; if it did, nothing would be known to be held.
fn held() -> CapabilitySet {
    thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.permitted)
}

/// Gives up all capabilities but these, and says which of them are left.
fn give_up_others(keep: CapabilitySet) -> Result<CapabilitySet, Errno> {
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        match thread::capability_is_in_bounding_set(one) {
            Ok(true) => {
                // An ordinary user may not, and need not: no_new_privs lets nobody reach for it.
                let _ = thread::remove_capability_from_bounding_set(one);
            }
            Ok(false) => {}
            // There are no more.
            Err(_) => break,
        }
    }
    thread::clear_ambient_capability_set()?;
    let had = thread::capabilities(None)?;
    let kept = had.permitted & keep;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: none };
    // Who has none needs no call, which a filter of system calls may well forbid.
    if sets != had {
        thread::set_capabilities(None, sets)?;
    }
    Ok(kept)
}

fn names(set: CapabilitySet) -> String {
    let names: Vec<_> = set.iter_names().map(|(name, _)| format!("CAP_{name}")).collect();
    names.join(" ")
}

fn landlock(needs: &Needs<'_>, programs: bool) -> Result<Landlock, RulesetError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_write(KNOWN) | AccessFs::Execute)?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::from_all(KNOWN))?
        .create()?;
    let keep = make_bitflags!(AccessFs::{
        WriteFile | Truncate | MakeReg | MakeDir | RemoveFile | RemoveDir | Refer
    });
    let mut allow = |folder: &Path, access: BitFlags<AccessFs>| -> Result<(), RulesetError> {
        // What is not there needs no rule.
        let Ok(folder) = PathFd::new(folder) else { return Ok(()) };
        (&mut rules).add_rule(PathBeneath::new(folder, access)).map(drop)
    };
    if let Some(state) = needs.state {
        allow(state, keep)?;
    }
    for folder in needs.sockets.iter().filter_map(|socket| socket.parent()) {
        allow(folder, AccessFs::RemoveFile.into())?;
    }
    if programs {
        let path = env::var_os("PATH").unwrap_or_default();
        let places = env::split_paths(&path).filter(|place| place.is_absolute());
        let places = places.chain([SYSTEM_PROGRAMS.into()]);
        for place in places.chain(LIBRARIES.map(PathBuf::from)) {
            allow(&place, AccessFs::Execute.into())?;
        }
        allow(Path::new(NOWHERE), AccessFs::WriteFile.into())?;
    }
    let status = rules.restrict_self()?;
    let words = match status.landlock {
        // A filter of system calls that does not know these looks the same.
        LandlockStatus::NotImplemented => "not in this kernel, or filtered".into(),
        LandlockStatus::NotEnabled => "not enabled in this kernel".into(),
        LandlockStatus::Available { effective_abi, kernel_abi } => {
            let abi: &dyn Display = kernel_abi.as_ref().map_or(&effective_abi, |abi| abi);
            format!("abi {abi}")
        }
    };
    Ok(Landlock { enforced: status.ruleset != RulesetStatus::NotEnforced, words })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use std::io::ErrorKind;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    /// A folder that is removed with its contents.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let name = format!("postpone-confine-{}-{name}", std::process::id());
            let path = env::temp_dir().join(name);
            for folder in ["state", "sockets", "elsewhere"] {
                fs::create_dir_all(path.join(folder)).unwrap();
            }
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Confines a thread, and does this in it. Tests beside it go on as they are.
    fn confined(scratch: &Scratch, load: &Load, act: impl FnOnce(&Confined) + Send) {
        let (state, sockets) = (scratch.0.join("state"), [scratch.0.join("sockets/own")]);
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let needs = Needs { state: Some(&state), sockets: &sockets, load };
                act(&Confined::new(&needs));
            });
            thread.join().unwrap();
        });
    }

    /// Whether Landlock holds; where the kernel has none, the rest is not to be seen.
    fn bites(confined: &Confined) -> bool {
        let enforced = confined.landlock.as_ref().is_ok_and(|landlock| landlock.enforced);
        if !enforced {
            println!("not shown: Landlock is {}", confined.landlock_words());
        }
        enforced
    }

    fn settings(text: &str) -> Load {
        toml::from_str(text).unwrap()
    }

    #[track_caller]
    fn denied<T>(done: std::io::Result<T>) {
        assert_eq!(done.map(drop).map_err(|error| error.kind()), Err(ErrorKind::PermissionDenied));
    }

    #[test]
    fn state_is_written_and_nothing_else_is_and_everything_is_read() {
        let scratch = Scratch::new("files");
        let at = |path: &str| scratch.0.join(path);
        let _listener = UnixListener::bind(at("sockets/own")).unwrap();
        fs::write(at("elsewhere/list"), "192.0.2.1").unwrap();
        confined(&scratch, &Load::default(), |confined| {
            if !bites(confined) {
                return;
            }
            fs::create_dir(at("state/db")).unwrap();
            fs::write(at("state/db/table"), "kept").unwrap();
            fs::rename(at("state/db/table"), at("state/table")).unwrap();
            fs::rename(at("state/db"), at("state/db.damaged")).unwrap();
            fs::remove_dir(at("state/db.damaged")).unwrap();
            assert_eq!(fs::read_to_string(at("elsewhere/list")).unwrap(), "192.0.2.1");
            denied(fs::write(at("elsewhere/list"), ""));
            denied(fs::write(at("elsewhere/new"), ""));
            denied(fs::remove_file(at("elsewhere/list")));
            denied(fs::create_dir(at("elsewhere/folder")));
            denied(fs::rename(at("state/table"), at("elsewhere/table")));
            denied(std::os::unix::fs::symlink("/etc/passwd", at("state/link")));
            denied(UnixListener::bind(at("state/socket")));
            fs::remove_file(at("sockets/own")).unwrap();
            denied(fs::write(at("sockets/new"), ""));
        });
    }

    #[test]
    fn no_port_is_bound_and_others_are_reached() {
        let scratch = Scratch::new("ports");
        let downstream = TcpListener::bind("127.0.0.1:0").unwrap();
        confined(&scratch, &Load::default(), |confined| {
            TcpStream::connect(downstream.local_addr().unwrap()).unwrap();
            let words = confined.landlock_words();
            let abi = words.strip_prefix("abi ").and_then(|abi| abi.parse::<u32>().ok());
            match abi {
                Some(4..) => denied(TcpListener::bind("127.0.0.1:0")),
                _ => println!("not shown: Landlock is {words}"),
            }
        });
    }

    #[test]
    fn a_program_is_run_only_where_postfix_is_to_be_asked() {
        let scratch = Scratch::new("programs");
        let asks = settings("[sessions]\nfrom = \"mta\"\nhigh = 0.9\n");
        confined(&scratch, &Load::default(), |confined| {
            if bites(confined) {
                denied(Command::new("true").status());
                assert_eq!(confined.refuses(&asks), ["[load.sessions] from = \"mta\""]);
            }
        });
        confined(&scratch, &asks, |confined| {
            assert!(Command::new("true").status().unwrap().success());
            assert!(confined.refuses(&asks).is_empty());
            // What it writes is no program, whatever its bits say.
            let own = scratch.0.join("state/own");
            fs::copy("/bin/true", &own).unwrap();
            if bites(confined) {
                denied(Command::new(&own).status());
            }
        });
    }

    /// What the kernel refuses is told, and is no reason not to serve: here it bears no more
    /// layers.
    #[test]
    fn what_the_kernel_refuses_is_said() {
        const MOST_LAYERS: usize = 16; // landlock(7)
        let scratch = Scratch::new("refused");
        confined(&scratch, &Load::default(), |first| {
            if !bites(first) {
                return;
            }
            let needs = Needs { state: None, sockets: &[], load: &Load::default() };
            let more: Vec<_> = (0..MOST_LAYERS).map(|_| Confined::new(&needs)).collect();
            let last = more.last().unwrap();
            assert!(last.landlock_words().starts_with("refused: "), "{}", last.landlock_words());
            assert_eq!(last.capability_words(), "none");
            assert!(!last.no_programs, "that it knows of");
        });
    }

    /// What the kernel says of this thread.
    fn status(field: &str) -> String {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap().trim().to_owned()
    }

    #[test]
    fn no_capability_is_kept_but_what_the_queue_asks_for() {
        let scratch = Scratch::new("capabilities");
        let none = "0000000000000000";
        let had = held().contains(CapabilitySet::DAC_READ_SEARCH);
        let queue = settings("[queue]\npath = \"/var/spool/postfix\"\nactive = { high = 9 }\n");
        confined(&scratch, &Load::default(), |confined| {
            assert_eq!(status("NoNewPrivs"), "1");
            for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
                assert_eq!(status(set), none, "{set}");
            }
            assert_eq!(confined.capability_words(), "none");
            assert_eq!(confined.refuses(&queue), if had { &["[load.queue]"][..] } else { &[] });
        });
        if had {
            confined(&scratch, &queue, |confined| {
                assert_eq!(confined.capability_words(), "CAP_DAC_READ_SEARCH");
                assert_eq!(status("CapEff"), "0000000000000004");
                assert_eq!(status("CapBnd"), none, "nobody who is run gets it");
                assert!(confined.refuses(&queue).is_empty());
            });
        }
    }
}
