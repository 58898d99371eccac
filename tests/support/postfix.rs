//! A private Postfix on loopback: its own settings, queue, log and mailbox in a temporary folder,
//! no DNS, its limits at their defaults, run as our child and gone with the value. Debian's
//! package is not installed but unpacked, so whatever MTA the host has stays as it is. It needs
//! root, as every Postfix does.

use super::{Folder, as_root, debian, free_port, wait_until};
use rustix::process::{Pid, Signal, kill_process_group};
use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::thread;
use std::time::SystemTime;

/// Mail to anyone in this domain is delivered into the one mailbox, unless a story says otherwise.
pub const DOMAIN: &str = "example.org";
/// How this Postfix calls itself, and so what its own replies name.
pub const HOSTNAME: &str = "mx.example.org";

/// The user and the group that it runs as. Its own are made only where it is installed.
pub const OWNER: &str = "mail";
const SETGID_GROUP: &str = "list";

/// Runs a command until it ends or standard input does, then kills the whole process group. We
/// hold the other end, so however this test process dies, Postfix goes with it. (A death signal
/// would not do: the kernel forgets it when the master changes its user.)
const LEASH: &str = r#"("$@" </dev/null; kill -KILL 0) & read -r nothing; kill -KILL 0"#;

pub struct Postfix {
    /// Plain SMTP: the client's address is the one it connects from. XCLIENT may tell a name.
    pub smtp: SocketAddr,
    /// SMTP behind a PROXY protocol line, which gives the client any address, IPv6 too.
    pub proxied: SocketAddr,
    /// The shell that holds the master on its leash, and leads their process group.
    leash: Child,
    folder: Folder,
}

/// What a Postfix is started with; `Postfix::plain()` and `Postfix::with_milter()` begin one.
#[derive(Default)]
pub struct Settings {
    milter: Option<String>,
    user: Option<(String, String)>,
    /// Restriction lists that ask a policy service, and more lines of main.cf.
    main: String,
    /// More lines of master.cf.
    master: String,
    domains: Vec<String>,
    mailboxes: Vec<String>,
    tls: bool,
    /// Where it lives; the folder for what is temporary, unless a story says otherwise.
    place: Option<PathBuf>,
}

impl Postfix {
    pub fn plain() -> Settings {
        Settings::default()
    }

    /// `endpoint` is in Postfix's words: `inet:127.0.0.1:7421` or `unix:/path`.
    pub fn with_milter(endpoint: &str) -> Settings {
        Settings { milter: Some(endpoint.to_owned()), ..Settings::default() }
    }

    /// Where its main.cf and its queue are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Sends a signal to all its processes: with STOP it hangs, with CONT it goes on.
    pub fn signal(&self, signal: Signal) {
        kill_process_group(Pid::from_child(&self.leash), signal).expect("Postfix runs");
    }

    /// Ends all its processes; its files stay.
    pub fn stop(&mut self) {
        self.signal(Signal::KILL);
        self.leash.wait().expect("the shell is ours");
    }

    /// Its processes of this program, `smtpd` say.
    pub fn processes(&self, program: &str) -> Vec<Pid> {
        let group = self.leash.id().to_string();
        let of_it = |pid: i32| {
            // `PID (PROGRAM) STATE PARENT GROUP ...`
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let (named, rest) = stat.split_once(") ")?;
            let ours = rest.split(' ').nth(2)? == group && named.ends_with(&format!("({program}"));
            ours.then(|| Pid::from_raw(pid)).flatten()
        };
        let processes = fs::read_dir("/proc").unwrap();
        let names = processes.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter_map(|name| of_it(name.parse().ok()?)).collect()
    }

    /// Every message delivered so far, whole, in no promised order.
    pub fn mailbox(&self) -> Vec<String> {
        let Ok(files) = fs::read_dir(self.folder.path().join("mail/inbox/new")) else {
            return Vec::new(); // the first delivery makes it
        };
        files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap()).collect()
    }

    /// Waits until the mailbox holds exactly these recipients' copies (local parts, or whole
    /// addresses in other domains; any order).
    pub fn delivered(&self, recipients: &[&str]) {
        let mut wanted: Vec<String> = recipients.iter().map(|to| address(to)).collect();
        wanted.sort();
        wait_until(&format!("mail to {wanted:?}"), || {
            let mut got: Vec<String> = self.mailbox().iter().map(|m| recipient(m)).collect();
            got.sort();
            assert!(got.len() <= wanted.len(), "more mail than sent: {got:?}, not {wanted:?}");
            (got == wanted).then_some(())
        });
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Settings {
    /// Makes this user known to SMTP AUTH (PLAIN, over Cyrus SASL's own small database).
    pub fn with_user(mut self, name: &str, password: &str) -> Self {
        self.user = Some((name.to_owned(), password.to_owned()));
        self
    }

    /// Asks the policy service at this address, in the words of `with_milter`, from these
    /// restriction lists: `recipient`, `end_of_data` and so on.
    pub fn with_policy_service(mut self, endpoint: &str, lists: &[&str]) -> Self {
        for list in lists {
            // The documented set-up, word for word.
            self.main += &format!(
                "smtpd_{list}_restrictions = \
                 check_policy_service {{ {endpoint}, default_action=DUNNO, timeout=5s }}\n"
            );
        }
        self
    }

    /// With this line of main.cf.
    pub fn with(mut self, line: &str) -> Self {
        self.main += &format!("{line}\n");
        self
    }

    /// With this line of master.cf.
    pub fn with_service(mut self, line: &str) -> Self {
        self.master += &format!("{line}\n");
        self
    }

    /// Serves this domain too.
    pub fn with_domain(mut self, name: &str) -> Self {
        self.domains.push(name.to_owned());
        self
    }

    /// Serves this recipient, a local part, and then only those who are named so: Postfix itself
    /// refuses all others.
    pub fn with_mailbox(mut self, name: &str) -> Self {
        self.mailboxes.push(name.to_owned());
        self
    }

    /// Offers STARTTLS, with a certificate that it has signed itself.
    pub fn with_tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Lives, queue and mailbox and all, in this folder.
    pub fn within(mut self, place: &Path) -> Self {
        self.place = Some(place.to_owned());
        self
    }

    pub fn start(self) -> Postfix {
        as_root();
        let folder = match &self.place {
            Some(place) => Folder::within(place, "postfix"),
            None => Folder::new("postfix"),
        };
        let (smtp, proxied) = (free_port(), free_port());
        let mut main = main_cf(folder.path(), &self);
        if let Some(endpoint) = &self.milter {
            main += &documented("smtpd_milters", endpoint);
        }
        if let Some((name, password)) = &self.user {
            main += &sasl(&folder, name, password);
        }
        main += &self.main;
        if self.tls {
            main += &tls(folder.path());
        }
        for (name, text) in
            [("main.cf", main), ("master.cf", master_cf(smtp, proxied) + &self.master)]
        {
            let file = fs::File::open(folder.write(name, &text)).unwrap();
            // Postfix trusts only a file that has stopped changing, and would wait two seconds.
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        }
        make_queue(folder.path());
        let leash = Command::new("sh")
            .args(["-c", LEASH, "sh"])
            .arg(unpacked().join("usr/lib/postfix/sbin/master"))
            .arg("-d") // stays in the foreground, and says on stderr why it cannot start
            .arg("-c")
            .arg(folder.path())
            .env("LD_LIBRARY_PATH", library_path())
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("sh starts Postfix's master");
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let mut postfix = Postfix { smtp: local(smtp), proxied: local(proxied), leash, folder };
        // Its log tells, because to knock at its port would already be a milter session.
        wait_until("Postfix to listen", || {
            if let Some(status) = postfix.leash.try_wait().unwrap() {
                panic!("Postfix's master ended ({status})");
            }
            postfix.log().contains("daemon started").then_some(())
        });
        postfix
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- Postfix's log\n{}---", self.log());
        }
        // Queue and mailbox go too, so there is nothing to finish: the whole group at once.
        let _ = kill_process_group(Pid::from_child(&self.leash), Signal::KILL);
        let _ = self.leash.wait();
    }
}

/// The set-up word for word as operators are told, but for the address.
fn documented(setting: &str, endpoint: &str) -> String {
    let lines = include_str!("../../conf/postfix-main.cf").lines();
    let mut setting = lines.filter(|line| line.starts_with(&format!("{setting} = ")));
    let line = setting.next().expect("conf/postfix-main.cf has it");
    let (before, address) = line.split_once("{ ").expect("an address with its parameters");
    let (_, parameters) = address.split_once(',').expect("an address with its parameters");
    format!("{before}{{ {endpoint},{parameters}\n")
}

/// The folder with Debian's package.
fn unpacked() -> &'static Path {
    static UNPACKED: LazyLock<PathBuf> = LazyLock::new(|| debian::unpacked(&["postfix"]));
    &UNPACKED
}

fn library_path() -> PathBuf {
    unpacked().join("usr/lib/postfix")
}

/// Lets a command find Postfix's own programs, such as `postconf`, in this `PATH` too.
pub fn with_programs<'a>(command: &'a mut Command, path: &str) -> &'a mut Command {
    let mut programs = OsString::from(unpacked().join("usr/sbin"));
    programs.push(":");
    programs.push(path);
    command.env("PATH", programs).env("LD_LIBRARY_PATH", library_path())
}

fn main_cf(folder: &Path, settings: &Settings) -> String {
    let root = folder.display();
    let mailboxes: Vec<String> =
        settings.mailboxes.iter().map(|to| format!("{{ {} = inbox/ }}", address(to))).collect();
    let mailboxes = match mailboxes.is_empty() {
        true => "static:inbox/".to_owned(),
        false => format!("inline:{{ {} }}", mailboxes.join(", ")),
    };
    let programs = unpacked().to_str().expect("a path of ours");
    include_str!("../../packaging/postfix.cf").replace("$programs", programs)
        + &format!(
            "compatibility_level = 3.6
queue_directory = {root}/queue
data_directory = {root}/data
maillog_file = {root}/log
maillog_file_prefixes = {root}
myhostname = {HOSTNAME}
mydestination =
mynetworks =
inet_protocols = all
alias_maps =
virtual_mailbox_domains = {DOMAIN} {domains}
virtual_mailbox_base = {root}/mail
virtual_mailbox_maps = {mailboxes}
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
# What reaches no DNS and asks for no name: XCLIENT tells one where a story needs it.
smtpd_peername_lookup = no
smtpd_authorized_xclient_hosts = 127.0.0.0/8
smtpd_relay_restrictions = permit_sasl_authenticated, reject_unauth_destination
",
            uid = id("passwd", OWNER),
            gid = id("group", OWNER),
            domains = settings.domains.join(" "),
        )
}

fn master_cf(smtp: u16, proxied: u16) -> String {
    format!(
        "127.0.0.1:{smtp} inet n - n - - smtpd
127.0.0.1:{proxied} inet n - n - - smtpd -o smtpd_upstream_proxy_protocol=haproxy
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
error unix - - n - - error
retry unix - - n - - error
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
tlsmgr unix - - n 1000? 1 tlsmgr
postlog unix-dgram n - n - 1 postlogd
"
    )
}

/// The folders Postfix's own installer makes, with the owners it insists on.
fn make_queue(folder: &Path) {
    for above in folder.ancestors().skip(1) {
        let open = above.metadata().unwrap().permissions().mode() & 0o001 != 0;
        let closed = above.display();
        assert!(open, "user {OWNER} cannot enter {closed}: set TMPDIR to a folder it can");
    }
    let owner = (id("passwd", OWNER), id("group", OWNER));
    let make = |name: &str, (uid, gid): (u32, u32), mode: u32| {
        let path = folder.join(name);
        fs::create_dir_all(&path).unwrap();
        chown(&path, Some(uid), Some(gid)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    make("queue", (0, 0), 0o755);
    make("queue/pid", (0, 0), 0o755);
    for name in ["data", "mail"] {
        make(name, owner, 0o700);
    }
    for name in [
        "active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private",
        "saved", "trace",
    ] {
        make(&format!("queue/{name}"), owner, 0o700);
    }
    let dropping = (owner.0, id("group", SETGID_GROUP));
    make("queue/public", dropping, 0o710);
    make("queue/maildrop", dropping, 0o730);
}

/// The number of the group that it runs as.
pub fn group() -> u32 {
    id("group", OWNER)
}

/// A user's or group's number, from /etc/passwd or /etc/group.
fn id(file: &str, name: &str) -> u32 {
    let text = fs::read_to_string(format!("/etc/{file}")).unwrap();
    let line = text.lines().find(|line| line.split(':').next() == Some(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in /etc/{file}"));
    line.split(':').nth(2).and_then(|number| number.parse().ok()).expect("name:x:number")
}

fn sasl(folder: &Folder, name: &str, password: &str) -> String {
    let base = folder.path().join("sasldb2");
    // Debian's Postfix looks in `sasl` beside main.cf, others where cyrus_sasl_config_path says.
    let place = folder.path().join("sasl");
    fs::create_dir_all(&place).unwrap();
    folder.write(
        "sasl/smtpd.conf",
        &format!(
            "pwcheck_method: auxprop\nauxprop_plugin: sasldb\nsasldb_path: {}\nmech_list: PLAIN\n",
            base.display()
        ),
    );
    let sasl = debian::unpacked(&["sasl2-bin"]); // installed, it brings a server
    let mut made = Command::new(sasl.join("usr/sbin/saslpasswd2"))
        .args(["-p", "-c", "-u", HOSTNAME, "-f"])
        .arg(&base)
        .arg(name)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("saslpasswd2: {e}"));
    std::io::Write::write_all(&mut made.stdin.take().unwrap(), password.as_bytes()).unwrap();
    assert!(made.wait().unwrap().success(), "saslpasswd2 failed");
    chown(&base, Some(id("passwd", OWNER)), None).unwrap();
    format!(
        "smtpd_sasl_auth_enable = yes
smtpd_sasl_path = smtpd
smtpd_sasl_local_domain = {HOSTNAME}
cyrus_sasl_config_path = {}
",
        place.display()
    )
}

fn tls(folder: &Path) -> String {
    let (key, certificate) = (folder.join("tls.key"), folder.join("tls.crt"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-nodes", "-days", "2", "-subj", &format!("/CN={HOSTNAME}")])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .unwrap_or_else(|e| panic!("apt-get install openssl ({e})"));
    assert!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
    format!(
        "smtpd_tls_security_level = may
smtpd_tls_chain_files = {}, {}
",
        key.display(),
        certificate.display()
    )
}

/// A recipient as a story names it: whole, or by the local part in our domain.
pub fn address(to: &str) -> String {
    if to.contains('@') { to.to_owned() } else { format!("{to}@{DOMAIN}") }
}

/// Whose copy of a message this is; Postfix writes one copy for each.
fn recipient(message: &str) -> String {
    let line = message.lines().find_map(|line| line.strip_prefix("Delivered-To: "));
    line.expect("virtual(8) writes Delivered-To").to_owned()
}
