//! The real `postpone serve`, with settings in a temporary folder: started, signalled, read (log
//! lines, metrics) and ended.

use super::postfix::OWNER;
use super::{Folder, PATIENCE, free_port, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// The line a starting daemon ends its preparations with holds this word.
const READY: &str = "serving";
/// What `{hostname}` in a reply becomes: not Postfix's own name, so one sees who is speaking.
pub const HOSTNAME: &str = "throttle.example.org";

pub struct Daemon {
    /// The milter's address in Postfix's words, `inet:127.0.0.1:PORT` or `unix:PATH`.
    pub endpoint: String,
    /// The policy service's.
    pub policy_endpoint: String,
    /// Both, as the settings say it.
    listen: String,
    /// Where `postpone ctl` asks, unless the policy has a `[control]` of its own.
    pub control: PathBuf,
    /// Where its settings are.
    pub config: PathBuf,
    http: SocketAddr,
    child: Child,
    log: Arc<Log>,
    folder: Folder,
}

/// What a milter listener is made of.
struct Listener {
    endpoint: String,
    speak: &'static str,
}

/// How the daemon is run: by a command before its own (`prlimit --nofile=64`, say), with these
/// variables in its environment, and with this as its standard input.
#[derive(Default)]
struct RunBy<'a> {
    command: &'a [&'a str],
    variables: &'a [(&'a str, &'a str)],
    input: Option<OwnedFd>,
}

impl Listener {
    fn none() -> Self {
        Self { endpoint: String::new(), speak: "helo" }
    }
}

/// The daemon's standard error, as a thread reads it.
#[derive(Default)]
struct Log {
    written: Mutex<Written>,
    grown: Condvar,
}

#[derive(Default)]
struct Written {
    lines: Vec<String>,
    ended: bool,
    /// Whether nobody reads more for now.
    unread: bool,
}

impl Daemon {
    /// Serves `policy`: settings that begin where the file begins; the rest `settings` puts in.
    pub fn start(policy: &str) -> Self {
        Self::speaking("helo", policy)
    }

    /// A listener with `speak = "mail"` is one where clients authenticate.
    pub fn speaking(speak: &'static str, policy: &str) -> Self {
        let milter = Listener { endpoint: free_endpoint(), speak };
        Self::listening(Folder::new("daemon"), milter, String::new(), RunBy::default(), policy)
    }

    /// Run by this command, with these variables in its environment.
    pub fn run_by(command: &[&str], variables: &[(&str, &str)], policy: &str) -> Self {
        let milter = Listener { endpoint: free_endpoint(), speak: "helo" };
        let run_by = RunBy { command, variables, input: None };
        Self::listening(Folder::new("daemon"), milter, String::new(), run_by, policy)
    }

    /// The same at these addresses, the milter's and the policy service's.
    pub fn at(milter: &str, policy_service: &str, command: &[&str], policy: &str) -> Self {
        let run_by = RunBy { command, ..RunBy::default() };
        let milter = Listener { endpoint: milter.into(), speak: "helo" };
        Self::listening(Folder::new("daemon"), milter, policy_service.into(), run_by, policy)
    }

    /// At this address, and given this socket, as a service manager passes one on.
    pub fn passed(endpoint: &str, socket: impl Into<OwnedFd>, policy: &str) -> Self {
        // Only the standard descriptors can be given to a child; the shell moves it.
        let moved = r#"exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@""#;
        let (command, input) = (&["sh", "-c", moved, "sh"], Some(socket.into()));
        let milter = Listener { endpoint: endpoint.into(), speak: "helo" };
        let run_by = RunBy { command, variables: &[], input };
        Self::listening(Folder::new("daemon"), milter, String::new(), run_by, policy)
    }

    /// Serves on a unix socket in the daemon's own folder.
    pub fn on_unix_socket(policy: &str) -> Self {
        let folder = Folder::new("daemon");
        let endpoint = format!("unix:{}/milter.sock", folder.path().display());
        Self::listening(
            folder,
            Listener { endpoint, speak: "helo" },
            String::new(),
            RunBy::default(),
            policy,
        )
    }

    /// Serves as a policy service, and not as a milter.
    pub fn policy_service(policy: &str) -> Self {
        Self::policy_service_run_by(&[], &[], policy)
    }

    /// The same, run by this command, with these variables in its environment.
    pub fn policy_service_run_by(
        command: &[&str],
        variables: &[(&str, &str)],
        policy: &str,
    ) -> Self {
        let run_by = RunBy { command, variables, input: None };
        Self::listening(Folder::new("daemon"), Listener::none(), free_endpoint(), run_by, policy)
    }

    /// The same on a unix socket.
    pub fn policy_service_on_unix_socket(policy: &str) -> Self {
        let folder = Folder::new("daemon");
        let endpoint = format!("unix:{}/policy.sock", folder.path().display());
        Self::listening(folder, Listener::none(), endpoint, RunBy::default(), policy)
    }

    /// Serves as both.
    pub fn milter_and_policy_service(policy: &str) -> Self {
        let milter = Listener { endpoint: free_endpoint(), speak: "helo" };
        Self::listening(Folder::new("daemon"), milter, free_endpoint(), RunBy::default(), policy)
    }

    fn listening(
        folder: Folder,
        Listener { endpoint, speak }: Listener,
        policy_endpoint: String,
        run_by: RunBy<'_>,
        policy: &str,
    ) -> Self {
        let http = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let listen = listen("milter", &endpoint, &format!("speak = \"{speak}\""))
            + &listen("policy", &policy_endpoint, "");
        let control = folder.path().join("control.sock");
        let config = folder.write("postpone.toml", &settings(&listen, http, &control, policy));
        let mut child = Command::new("setpriv") // so that it ends even when we are killed
            .args(["--pdeathsig", "KILL", "--"])
            .args(run_by.command)
            .args([env!("CARGO_BIN_EXE_postpone"), "serve", "--config"])
            .arg(&config)
            .env_remove("RUST_LOG")
            .env_remove("JOURNAL_STREAM")
            .env_remove("NOTIFY_SOCKET")
            .envs(run_by.variables.iter().copied())
            .stdin(run_by.input.map_or_else(Stdio::null, Stdio::from))
            .stderr(Stdio::piped())
            .spawn()
            .expect("setpriv (util-linux) starts postpone");
        let log = Arc::new(Log::default());
        let stderr = BufReader::new(child.stderr.take().unwrap());
        thread::spawn({
            let log = Arc::clone(&log);
            move || log.follow(stderr)
        });
        let daemon =
            Daemon { endpoint, policy_endpoint, listen, control, config, http, child, log, folder };
        daemon.line("the daemon to serve", |line| line.contains(READY));
        daemon
    }

    /// Puts another policy into the file and asks for a reload; what came of it, the log says.
    pub fn reload(&self, policy: &str) {
        self.rewrite(policy);
        self.signal(Signal::HUP);
    }

    /// The number of its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Memory of its process that is resident, in bytes.
    pub fn resident(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<usize>().ok());
        kib.expect("a line of it is `VmRSS: 1234 kB`") * 1024
    }

    /// Puts another policy into the file, and nothing else.
    pub fn rewrite(&self, policy: &str) {
        let settings = settings(&self.listen, self.http, &self.control, policy);
        self.folder.write("postpone.toml", &settings);
    }

    /// What `postpone ctl` says when it asks this daemon, and how it ends.
    pub fn ctl(&self, arguments: &[&str]) -> Output {
        postpone(&[&["ctl", "--socket", self.control.to_str().unwrap()], arguments].concat())
    }

    /// What it prints where nothing goes wrong.
    #[track_caller]
    pub fn told(&self, arguments: &[&str]) -> String {
        let output = self.ctl(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the daemon runs");
    }

    /// Waits for the daemon to end; `None` when a signal killed it.
    pub fn exit_code(&mut self) -> Option<i32> {
        wait_until("the daemon to end", || self.child.try_wait().unwrap()).code()
    }

    /// How it has ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for the first log line that `wanted` accepts, from the daemon's start on.
    #[track_caller]
    pub fn line(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let mut written = self.log.written();
        loop {
            if let Some(line) = written.lines.iter().find(|line| wanted(line)) {
                return line.clone();
            }
            assert!(!written.ended, "the daemon ended without {what}");
            let (more, timeout) = self.log.grown.wait_timeout(written, PATIENCE).unwrap();
            assert!(!timeout.timed_out(), "no sign of {what} in the daemon's log");
            written = more;
        }
    }

    /// From now on nobody reads its log, or somebody does again.
    pub fn log_is_read(&self, read: bool) {
        self.log.written().unread = !read;
        self.log.grown.notify_all();
    }

    /// Every log line up to now.
    pub fn lines(&self) -> Vec<String> {
        self.log.written().lines.clone()
    }

    /// Waits for a decision's line that has all of these fields.
    #[track_caller]
    pub fn decision(&self, fields: &[(&str, &str)]) -> String {
        self.line(&format!("a decision {fields:?}"), |line| has(line, fields))
    }

    /// The sum of all samples of this metric that have these labels, others beside them or not.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        metric(&self.get("/metrics"), name, labels)
    }

    /// Where it has metrics.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// The answer to an HTTP request, head and body.
    pub fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.http).expect("the daemon's HTTP port");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = "HTTP/1.1\r\nHost: localhost\r\nConnection: close";
        stream.write_all(format!("GET {path} {head}\r\n\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- postpone's log\n{}\n---", self.log.written().lines.join("\n"));
        }
    }
}

impl Log {
    fn follow(&self, stderr: impl BufRead) {
        for line in stderr.lines() {
            let written = self.written();
            drop(self.grown.wait_while(written, |written| written.unread));
            self.written().lines.push(line.unwrap());
            self.grown.notify_all();
        }
        self.written().ended = true;
        self.grown.notify_all();
    }

    /// A test that failed while it waited has poisoned the lock; its log is wanted all the more.
    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs the binary with these arguments until it ends.
pub fn postpone(arguments: &[&str]) -> Output {
    let program = ["60", env!("CARGO_BIN_EXE_postpone")];
    Command::new("timeout").args(program).args(arguments).output().expect("timeout (coreutils)")
}

/// A whole file from a policy: memory only, text log, own ports. Every client here is on loopback,
/// which the built-in allowlist would exempt. What the policy says itself stands as it says.
fn settings(listen: &str, http: SocketAddr, control: &Path, policy: &str) -> String {
    let unless_said = |section: &str, default: &str| {
        let said = policy.contains(&format!("[{section}]"));
        if said { String::new() } else { format!("[{section}]\n{default}\n") }
    };
    format!(
        r#"{policy}
{access}{greylist}{server}{listen}{state}{control}{log}"#,
        access = unless_said("access", "allow = []"),
        greylist = unless_said("greylist", "mode = \"off\""),
        control = unless_said(
            "control",
            &format!("http = \"{http}\"\nsocket = \"unix:{}\"", control.display())
        ),
        log = unless_said("log", "format = \"text\""),
        state = unless_said("state", "path = \"none\""),
        server = unless_said("server", &format!("hostname = \"{HOSTNAME}\"")),
    )
}

/// One `[[listen]]`, where there is to be one; on a unix socket Postfix may use it.
fn listen(protocol: &str, endpoint: &str, more: &str) -> String {
    let group = match endpoint.starts_with("unix:") {
        true => format!("socket_group = \"{OWNER}\""),
        false => String::new(),
    };
    match endpoint {
        "" => String::new(),
        _ => format!("[[listen]]\n{protocol} = \"{endpoint}\"\n{more}\n{group}\n"),
    }
}

fn free_endpoint() -> String {
    format!("inet:127.0.0.1:{}", free_port())
}

/// The same on a page of metrics.
pub fn metric(page: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let samples = page.lines().filter_map(|line| line.rsplit_once(' '));
    let wanted = samples.filter(|(series, _)| {
        let (series_name, series_labels) = series.split_once('{').unwrap_or((series, ""));
        let label = |(key, value): &(&str, &str)| {
            series_labels.split([',', '}']).any(|pair| pair == format!("{key}=\"{value}\""))
        };
        series_name == name && labels.iter().all(label)
    });
    wanted.map(|(_, value)| value.parse::<f64>().unwrap()).sum()
}

/// Whether a log line has all of these `key=value` fields.
fn has(line: &str, fields: &[(&str, &str)]) -> bool {
    fields.iter().all(|(key, value)| field(line, key) == Some(value))
}

/// A field of a log line; a value with spaces stands in quotes there.
pub fn field<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let start = line.match_indices(key).find_map(|(at, _)| {
        let begins = at == 0 || line[..at].ends_with(' ');
        let rest = &line[at + key.len()..];
        rest.strip_prefix('=').filter(|_| begins)
    })?;
    match start.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next(),
        None => start.split(' ').next(),
    }
}
