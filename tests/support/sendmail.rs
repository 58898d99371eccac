//! A private Sendmail on loopback: its own settings, queue, log, users and mailbox in a temporary
//! folder, no DNS, no limits of its own, run as our child and gone with the value. Debian's
//! sendmail packages conflict with Postfix's, so they are not installed but unpacked beside the
//! build. It needs root and, for a host name, an /etc and a /dev/log of its own, namespaces.

use super::postfix::DOMAIN;
use super::{Folder, as_root, debian, free_port, wait_until};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// How this Sendmail calls itself: the name of its host, which must have a dot.
pub const HOSTNAME: &str = "mx.example.org";
/// Who has a mailbox. Anyone else in the domain is refused at RCPT.
const USERS: [&str; 6] = ["one", "two", "three", "anna", "bert", "carl"];
/// The one client with a name, `out.partner.example`; the name and the address confirm each other.
pub const PARTNER: &str = "127.9.9.1";

/// What it is made of. All are found in Debian and fit beside an installed Postfix only unpacked.
const PACKAGES: [&str; 4] = ["sendmail-bin", "sendmail-base", "sendmail-cf", "libwrap0"];

/// The first process of its namespaces, so that all ends with it: Sendmail, every session's
/// process, and each delivery, which has left their process group. It ends when Sendmail does or
/// standard input does. We hold the other end, so however this test process dies, Sendmail goes
/// with it.
const LEASH: &str = r#"
set -e
hostname "$1"; shift
for name in null urandom; do mount --bind /dev/$name dev/$name; done
mount --rbind dev /dev
for name in passwd hosts nsswitch.conf; do mount --bind etc/$name /etc/$name; done
exec 3<&0
"$@" </dev/null 3<&- & sendmail=$!
{ read -r nothing || kill -KILL $sendmail; } <&3 &
wait $sendmail 2>/dev/null # it would tell of the kill
"#;

pub struct Sendmail {
    /// The client's address is the one it connects from; `PARTNER` has a name.
    pub smtp: SocketAddr,
    /// The same on ::1.
    pub smtp6: SocketAddr,
    /// `unshare`, which waits for the leash.
    leash: Child,
    log: Arc<Log>,
    folder: Folder,
}

/// What Sendmail tells syslog, as a thread reads it from a /dev/log of its own.
struct Log {
    socket: UnixDatagram,
    written: Mutex<String>,
}

impl Sendmail {
    pub fn plain() -> Self {
        Self::start(None)
    }

    /// `endpoint` is in Postfix's words: `inet:127.0.0.1:7421` or `unix:/path`.
    pub fn with_milter(endpoint: &str) -> Self {
        Self::start(Some(endpoint))
    }

    fn start(milter: Option<&str>) -> Self {
        as_root();
        let unpacked = unpacked();
        let folder = Folder::new("sendmail");
        let port = free_port();
        lay_out(&folder);
        let cf = sendmail_cf(&folder, &unpacked, &sendmail_mc(folder.path(), port, milter));
        let log = Log::at(&folder.path().join("dev/log"));
        let leash = Command::new("unshare")
            .args(["--mount", "--uts", "--pid", "--fork", "--kill-child=KILL"])
            .args(["sh", "-c", LEASH, "sh", HOSTNAME])
            .arg(unpacked.join("usr/libexec/sendmail/sendmail"))
            .arg("-bD") // stays in the foreground
            .arg("-C")
            .arg(cf)
            .current_dir(folder.path())
            .env("LD_LIBRARY_PATH", library_path(&unpacked))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("unshare (util-linux) starts Sendmail");
        let local = SocketAddr::from(([127, 0, 0, 1], port));
        let local6 = SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], port));
        let mut sendmail = Sendmail { smtp: local, smtp6: local6, leash, log, folder };
        // The kernel tells: log line and pid file come before it listens, and to knock would
        // already be a milter session.
        wait_until("Sendmail to listen", || {
            if let Some(status) = sendmail.leash.try_wait().unwrap() {
                panic!(
                    "Sendmail ended ({status}), and its own word on it stands above: it needs \
                     root that may make namespaces, ::1, and the libraries of sendmail-bin"
                );
            }
            (listens("tcp", port) && listens("tcp6", port)).then_some(())
        });
        sendmail
    }

    /// Every message delivered so far, whole, in no promised order.
    pub fn mailbox(&self) -> Vec<String> {
        let files = fs::read_dir(self.folder.path().join("mail/new")).unwrap();
        files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap()).collect()
    }

    /// Waits until the mailbox holds exactly these recipients' copies (local parts, any order).
    pub fn delivered(&self, recipients: &[&str]) {
        let mut wanted: Vec<String> =
            recipients.iter().map(|to| format!("{to}@{DOMAIN}")).collect();
        wanted.sort();
        wait_until(&format!("mail to {wanted:?}"), || {
            let mut got: Vec<String> = self.mailbox().iter().map(|m| recipient(m)).collect();
            got.sort();
            assert!(got.len() <= wanted.len(), "more mail than sent: {got:?}, not {wanted:?}");
            (got == wanted).then_some(())
        });
    }

    pub fn log(&self) -> String {
        self.log.written.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Sendmail {
    fn drop(&mut self) {
        // Queue and mailbox go too, so there is nothing to finish. That `unshare` has ended means
        // that nothing in its namespaces runs any more.
        drop(self.leash.stdin.take());
        let _ = self.leash.wait();
        self.log.end();
        if thread::panicking() {
            eprintln!("--- Sendmail's log\n{}---", self.log());
        }
    }
}

impl Log {
    fn at(path: &Path) -> Arc<Self> {
        let socket = UnixDatagram::bind(path).unwrap();
        let log = Arc::new(Log { socket, written: Mutex::default() });
        thread::spawn({
            let log = Arc::clone(&log);
            move || log.follow()
        });
        log
    }

    /// It must be read as it comes: a full socket would hold Sendmail up.
    fn follow(&self) {
        let mut line = [0; 8192];
        while let length @ 1.. = self.socket.recv(&mut line).unwrap() {
            let line = String::from_utf8_lossy(&line[..length]);
            let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
            *written += line.trim_end_matches(['\n', '\0']);
            *written += "\n";
        }
    }

    /// An empty datagram is what ends the thread; syslog sends none.
    fn end(&self) {
        let own = self.socket.local_addr().unwrap();
        let _ = self.socket.send_to_addr(&[], &own);
    }
}

/// The folder with Debian's packages.
fn unpacked() -> PathBuf {
    let folder = debian::unpacked(&PACKAGES);
    // Its set-gid bit would make the loader ignore LD_LIBRARY_PATH.
    let program = folder.join("usr/libexec/sendmail/sendmail");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
        .unwrap_or_else(|e| panic!("{}: {e}", program.display()));
    folder
}

/// Whether there is a listener in the kernel's table of this protocol (proc_net_tcp.txt).
fn listens(protocol: &str, port: u16) -> bool {
    const LISTENING: &str = "0A";
    let table = fs::read_to_string(format!("/proc/net/{protocol}")).unwrap();
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[1].ends_with(&format!(":{port:04X}")) && fields[3] == LISTENING
    })
}

/// Where the unpacked libraries are: one folder, of the machine's name.
fn library_path(unpacked: &Path) -> String {
    let folders = fs::read_dir(unpacked.join("usr/lib")).unwrap();
    let folders = folders.map(|folder| folder.unwrap().path().display().to_string());
    folders.collect::<Vec<_>>().join(":")
}

/// Everything beside `sendmail.cf`, as `LEASH` and `sendmail_mc` name it.
fn lay_out(folder: &Folder) {
    for name in ["queue", "mail", "mail/tmp", "mail/new", "dev", "etc"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    for device in ["null", "urandom"] {
        folder.write(&format!("dev/{device}"), ""); // a place to mount it
    }
    let user = |name: &str| format!("{name}:x:8:8::/:/bin/false\n");
    let users: String = USERS.map(user).concat();
    folder.write("etc/passwd", &format!("root:x:0:0::/:/bin/sh\n{}{users}", user("mail")));
    let hosts = format!("127.0.0.1 localhost\n::1 localhost\n{PARTNER} out.partner.example\n");
    folder.write("etc/hosts", &hosts);
    folder.write("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n");
    folder.write("service.switch", "passwd files\nhosts files\n");
    let root = folder.path().display();
    let deliver = folder.write(
        "deliver",
        &format!(
            "#!/bin/sh
set -e
cd '{root}/mail'
copy=$(mktemp tmp/XXXXXXXXXX)
{{ echo \"Delivered-To: $1@{DOMAIN}\"; cat; }} > \"$copy\"
mv \"$copy\" new/
"
        ),
    );
    fs::set_permissions(deliver, fs::Permissions::from_mode(0o755)).unwrap();
}

fn sendmail_mc(folder: &Path, port: u16, milter: Option<&str>) -> String {
    let root = folder.display();
    // The documented set-up, word for word: without F= mail passes when we are not there.
    let filter = milter.map_or_else(String::new, |endpoint| {
        let place = equate(endpoint);
        format!("INPUT_MAIL_FILTER(`postpone', `S={place}, T=C:5s;S:5s;R:5s')dnl")
    });
    format!(
        "OSTYPE(`linux')dnl
LOCAL_DOMAIN(`{DOMAIN}')dnl
DAEMON_OPTIONS(`Name=MTA, Family=inet, Addr=127.0.0.1, Port={port}')dnl
DAEMON_OPTIONS(`Name=MTA6, Family=inet6, Addr=::1, Port={port}')dnl
{filter}
dnl # No DNS and no ident: only what is in our /etc/hosts has a name.
FEATURE(`no_default_msa')dnl
FEATURE(`nocanonify')dnl
FEATURE(`accept_unresolvable_domains')dnl
define(`confSERVICE_SWITCH_FILE', `{root}/service.switch')dnl
define(`confDONT_PROBE_INTERFACES', `True')dnl
define(`confTO_IDENT', `0')dnl
dnl # Only postpone throttles here.
define(`confQUEUE_LA', `100000')dnl
define(`confREFUSE_LA', `100000')dnl
dnl # Its files, and no others. Our folder is below /tmp, and so is a unix socket.
define(`QUEUE_DIR', `{root}/queue')dnl
define(`confPID_FILE', `{root}/pid')dnl
define(`ALIAS_FILE', `')dnl
define(`STATUS_FILE', `')dnl
define(`HELP_FILE', `')dnl
define(`confDONT_BLAME_SENDMAIL', `TrustStickyBit')dnl
define(`confDEF_USER_ID', `8:8')dnl
dnl # Every copy becomes a file. There are no aliases, but users must exist.
define(`LOCAL_MAILER_PATH', `{root}/deliver')dnl
define(`LOCAL_MAILER_ARGS', `deliver $u')dnl
define(`LOCAL_MAILER_FLAGS', `SPn')dnl
MODIFY_MAILER_FLAGS(`LOCAL', `-A')dnl
MAILER(`local')dnl
MAILER(`smtp')dnl
"
    )
}

/// A milter's place in Sendmail's words.
fn equate(endpoint: &str) -> String {
    match endpoint.split_once(':').expect("inet: or unix:") {
        ("inet", address) => {
            let (host, port) = address.rsplit_once(':').expect("host:port");
            format!("inet:{port}@{host}")
        }
        (_, path) => format!("local:{path}"),
    }
}

/// Makes `sendmail.cf`, as every Sendmail's owner does.
fn sendmail_cf(folder: &Folder, unpacked: &Path, mc: &str) -> PathBuf {
    let macros = unpacked.join("usr/share/sendmail/cf");
    // From within, since the macros run a shell over their own path, which may have spaces.
    let output = Command::new("m4")
        .current_dir(macros)
        .args(["-D_CF_DIR_=./", "m4/cf.m4"])
        .arg(folder.write("sendmail.mc", mc))
        .output()
        .unwrap_or_else(|e| panic!("apt-get install m4 ({e})"));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.is_empty(), "m4: {told}");
    folder.write("sendmail.cf", &String::from_utf8(output.stdout).unwrap())
}

/// Whose copy of a message this is; one is written for each.
fn recipient(message: &str) -> String {
    let line = message.lines().find_map(|line| line.strip_prefix("Delivered-To: "));
    line.expect("our mailer writes Delivered-To").to_owned()
}
