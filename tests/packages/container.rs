//! A Debian that boots its own systemd in namespaces of its own (systemd-nspawn), with a Postfix from
//! Debian's package: what is installed, started and removed in it is so for real. Its network is a
//! loopback of its own, and what is written goes with it: the folder it was made in stays as it was.

// Nothing outside this test crate could reach it.
#![allow(unreachable_pub, clippy::unwrap_used, clippy::print_stderr)]

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal, kill_process};

use super::support::debian::PLACE_OF_ROOT;
use super::support::{Folder, as_root, wait_until};

/// What is in it beside the least a Debian has. `rpm` is there for the other package.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,postfix,iproute2,rpm";
/// Where the container sees the folder that it was given.
pub const GIVEN: &str = "/given";
/// Clients that are on no allowlist, as loopback is, of two networks.
pub const CLIENT: &str = "192.0.2.7";
pub const STRANGER: &str = "198.51.100.7";

/// Two containers in one control group would take each other's groups away. These hosts may have no
/// service manager that makes one.
const IN_ITS_OWN_CGROUP: &str = r#"
    for place in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
        if [ -e "$place/cgroup.procs" ]; then
            mkdir "$place/$0" && echo $$ >"$place/$0/cgroup.procs" || exit 1
        fi
    done
    exec "$@""#;
const CGROUP_GONE: &str = r#"
    for place in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
        [ ! -d "$place/$0" ] || find "$place/$0" -depth -type d -exec rmdir {} +
    done"#;

pub struct Container {
    name: String,
    nspawn: Child,
    /// Its init, as this host numbers it.
    init: u32,
    console: Folder,
}

impl Container {
    /// Boots one that can read `given`, and gives it addresses for clients and a user `bob` who gets
    /// mail.
    pub fn boot(given: &Path) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        as_root();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let console = Folder::new("console");
        let log = fs::File::create(console.path().join("log")).unwrap();
        let name = format!("postpone-{}-{number}", std::process::id());
        let mut nspawn = Command::new("sh")
            .args(["-c", IN_ITS_OWN_CGROUP, &name, "systemd-nspawn"])
            .args(["--quiet", "--register=no", "--keep-unit", "--boot", "--console=pipe"])
            .args(["--volatile=overlay", "--private-network"])
            // Systemd's own filter for containers does not know Landlock.
            .arg("--system-call-filter=landlock_create_ruleset landlock_add_rule landlock_restrict_self")
            .arg(format!("--machine={name}"))
            .arg(format!("--bind-ro={}:{GIVEN}", given.display()))
            .arg("--directory")
            .arg(debian())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("systemd-nspawn: apt-get install systemd-container");
        let children = format!("/proc/{0}/task/{0}/children", nspawn.id());
        let init = wait_until("the container's init", || {
            assert!(nspawn.try_wait().unwrap().is_none(), "{}", said(&console));
            let children = fs::read_to_string(&children).ok()?;
            let init: u32 = children.split_whitespace().next()?.parse().ok()?;
            // Before it is systemd, it is nspawn, which is still making the namespaces.
            let name = fs::read_to_string(format!("/proc/{init}/comm")).ok()?;
            (name == "systemd\n").then_some(init)
        });
        let container = Self { name, nspawn, init, console };
        wait_until("the container's systemd", || {
            let state = container.run("systemctl is-system-running --wait");
            (state.stdout == b"running\n").then_some(())
        });
        container.does(&format!(
            "ip address add {CLIENT} dev lo && ip address add {STRANGER} dev lo && useradd --create-home bob &&
             postconf -e mydestination=example.org,localhost smtpd_peername_lookup=no &&
             systemctl restart postfix"
        ));
        container
    }

    /// Runs a shell's command in it, as its root.
    pub fn run(&self, command: &str) -> Output {
        Command::new("nsenter")
            .args(["--all", "--target", &self.init.to_string(), "env", "--ignore-environment"])
            .args(["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "HOME=/root"])
            .args(["DEBIAN_FRONTEND=noninteractive", "sh", "-c", command])
            .stdin(Stdio::null())
            .output()
            .expect("nsenter (util-linux)")
    }

    /// What a command that succeeds has said, on both outputs.
    #[track_caller]
    pub fn does(&self, command: &str) -> String {
        let (done, said) = self.tries(command);
        assert!(done, "{command}: {said}");
        said
    }

    /// What a command that fails has said.
    #[track_caller]
    pub fn refuses(&self, command: &str) -> String {
        let (done, said) = self.tries(command);
        assert!(!done, "{command}: {said}");
        said
    }

    fn tries(&self, command: &str) -> (bool, String) {
        let output = self.run(&format!("exec 2>&1; {command}"));
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Where this host finds a file of it.
    pub fn outside(&self, path: &str) -> PathBuf {
        format!("/proc/{}/root{path}", self.init).into()
    }

    pub fn read(&self, path: &str) -> String {
        self.does(&format!("cat {path}"))
    }

    /// Writes a file in it, as its root.
    pub fn write(&self, path: &str, text: &str) {
        let outside = self.outside(path);
        fs::create_dir_all(outside.parent().unwrap()).unwrap();
        fs::write(&outside, text).unwrap_or_else(|e| panic!("{path}: {e}"));
    }

    /// Waits until a command succeeds.
    pub fn until(&self, command: &str) {
        wait_until(command, || self.run(command).status.success().then_some(()));
    }

    /// The last reply that a client was told who sends a message to bob, with this host's swaks.
    pub fn send(&self, client: &str) -> String {
        self.send_from(client, "anna@example.net")
    }

    /// The same, with this sender.
    pub fn send_from(&self, client: &str, sender: &str) -> String {
        let output = Command::new("nsenter")
            .args(["--net", "--target", &self.init.to_string(), "swaks"])
            .args(["--server", "127.0.0.1", "--local-interface", client, "--timeout", "20"])
            .args(["--helo", "client.example.net", "--from", sender])
            .args(["--to", "bob@example.org", "--hide-informational"])
            .output()
            .expect("swaks: apt-get install swaks");
        let transcript = String::from_utf8_lossy(&output.stdout).into_owned();
        let reply = |line: &str| {
            line.starts_with("<** ") || (line.starts_with("<-  250 ") && line.contains("queued as"))
        };
        let told = transcript.lines().find(|line| reply(line));
        told.unwrap_or_else(|| panic!("{transcript}"))
            .trim_start_matches(['<', '*', '-', ' '])
            .into()
    }

    /// Every path in it that is no process, device or log, and not what dpkg, apt, systemd, Postfix and
    /// ldconfig keep for themselves.
    pub fn files(&self) -> Vec<String> {
        let kept = "/proc /sys /dev /run /tmp /given /var/log /var/lib/dpkg /var/cache /var/lib/apt \
                    /var/spool/postfix /var/mail /var/lib/systemd /var/lib/postfix /var/tmp /root \
                    /var/lib/rpm /etc/passwd- /etc/shadow- /etc/group- /etc/gshadow- /var/lib/deb-systemd-helper";
        let skipped: String =
            kept.split_whitespace().map(|path| format!("-path {path} -prune -o ")).collect();
        let listed = self.does(&format!("find / {skipped} -print | sort"));
        listed.lines().map(Into::into).collect()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let journal = self.run("journalctl --boot --lines=100 --no-pager 2>&1");
            eprintln!("{}{}", said(&self.console), String::from_utf8_lossy(&journal.stdout));
        }
        // All that runs in it ends with its init.
        if let Some(init) = Pid::from_raw(self.init.cast_signed()) {
            let _ = kill_process(init, Signal::KILL);
        }
        let _ = self.nspawn.wait();
        let _ = Command::new("sh").args(["-c", CGROUP_GONE, &self.name]).status();
    }
}

fn said(console: &Folder) -> String {
    fs::read_to_string(console.path().join("log")).unwrap_or_default()
}

/// The Debian that containers boot: this host's release, made once and kept.
fn debian() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let release = fs::read_to_string("/etc/os-release").unwrap();
        let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
        let codename = codename.expect("a Debian with a code name");
        let root =
            Path::new(PLACE_OF_ROOT).join(format!("{codename}-{}", PACKAGES.replace(',', "-")));
        if root.exists() {
            return root;
        }
        fs::create_dir_all(PLACE_OF_ROOT).unwrap();
        let making = root.with_extension("making");
        match fs::remove_dir_all(&making) {
            Err(error) if error.kind() != ErrorKind::NotFound => panic!("{error}"),
            _ => {}
        }
        // From where apt itself takes this release; else from where debootstrap would.
        let from = Command::new("apt-get")
            .args(["indextargets", "--format", "$(REPO_URI)", "Component: main"])
            .arg(format!("Codename: {codename}"))
            .output()
            .expect("apt-get");
        let from = String::from_utf8_lossy(&from.stdout);
        let made = Command::new("debootstrap")
            .args(["--variant=minbase", &format!("--include={PACKAGES}"), codename])
            .arg(&making)
            .args(from.lines().next())
            .output()
            .expect("debootstrap: apt-get install debootstrap");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
        fs::rename(&making, &root).unwrap();
        root
    })
}
