//! The real `postpone serve`, with settings in a temporary folder: started, signalled, read (log
//! lines, metrics) and ended.

use super::{Folder, PATIENCE, free_port, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// The line a starting daemon ends its preparations with holds this word.
const READY: &str = "serving";

pub struct Daemon {
    /// The milter's address in Postfix's words, `inet:127.0.0.1:PORT` or `unix:PATH`.
    pub endpoint: String,
    speak: &'static str,
    http: SocketAddr,
    child: Child,
    log: Arc<Log>,
    config: PathBuf,
    folder: Folder,
}

/// What the daemon wrote to standard error so far; `None` last means that it has ended.
#[derive(Default)]
struct Log {
    lines: Mutex<(Vec<String>, bool)>,
    grown: Condvar,
}

impl Daemon {
    /// Serves `policy`: the settings but for where to listen, and for what `settings` puts in.
    pub fn start(policy: &str) -> Self {
        Self::speaking("helo", policy)
    }

    /// A listener with `speak = "mail"` is one where clients authenticate.
    pub fn speaking(speak: &'static str, policy: &str) -> Self {
        Self::listening(format!("inet:127.0.0.1:{}", free_port()), speak, policy)
    }

    /// Serves on a unix socket in the daemon's own folder.
    pub fn on_unix_socket(policy: &str) -> Self {
        let folder = Folder::new("socket");
        let endpoint = format!("unix:{}/milter.sock", folder.path().display());
        let mut daemon = Self::listening(endpoint, "helo", policy);
        daemon.folder = folder;
        daemon
    }

    fn listening(endpoint: String, speak: &'static str, policy: &str) -> Self {
        let folder = Folder::new("daemon");
        let http = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let config = folder.write("postpone.toml", &settings(&endpoint, speak, http, policy));
        let mut child = Command::new("setpriv") // so that it ends even when we are killed
            .args(["--pdeathsig", "KILL", "--", env!("CARGO_BIN_EXE_postpone"), "serve"])
            .arg("--config")
            .arg(&config)
            .env_remove("RUST_LOG")
            .env_remove("JOURNAL_STREAM")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("setpriv (util-linux) starts postpone");
        let log = Arc::new(Log::default());
        let stderr = BufReader::new(child.stderr.take().unwrap());
        thread::spawn({
            let log = Arc::clone(&log);
            move || log.follow(stderr)
        });
        let daemon = Daemon { endpoint, speak, http, child, log, config, folder };
        daemon.line("the daemon to serve", |line| line.contains(READY));
        daemon
    }

    /// Puts another policy into the file and asks for a reload; what came of it, the log says.
    pub fn reload(&self, policy: &str) {
        self.folder
            .write("postpone.toml", &settings(&self.endpoint, self.speak, self.http, policy));
        self.signal(Signal::HUP);
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the daemon runs");
    }

    /// Waits for the daemon to end; `None` when a signal killed it.
    pub fn exit_code(&mut self) -> Option<i32> {
        wait_until("the daemon to end", || self.child.try_wait().unwrap()).code()
    }

    /// Waits for the first log line that `wanted` accepts, from the daemon's start on.
    #[track_caller]
    pub fn line(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let mut log = self.log.lines.lock().unwrap();
        loop {
            if let Some(line) = log.0.iter().find(|line| wanted(line)) {
                return line.clone();
            }
            assert!(!log.1, "the daemon ended without {what}:\n{}", log.0.join("\n"));
            let (after, timeout) = self.log.grown.wait_timeout(log, PATIENCE).unwrap();
            assert!(!timeout.timed_out(), "no sign of {what} in the log:\n{}", after.0.join("\n"));
            log = after;
        }
    }

    /// Waits for a decision's line that has all of these fields.
    #[track_caller]
    pub fn decision(&self, fields: &[(&str, &str)]) -> String {
        self.line(&format!("a decision {fields:?}"), |line| has(line, fields))
    }

    /// How many lines with all of these fields were written so far.
    pub fn count(&self, fields: &[(&str, &str)]) -> usize {
        self.log.lines.lock().unwrap().0.iter().filter(|line| has(line, fields)).count()
    }

    /// The sum of all samples of this metric that have these labels, others beside them or not.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let page = self.get("/metrics");
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

    /// The answer to an HTTP request, head and body.
    pub fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.http).expect("the daemon's HTTP port");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .unwrap();
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
            eprintln!("--- postpone's log\n{}\n---", self.log.lines.lock().unwrap().0.join("\n"));
        }
    }
}

impl Log {
    fn follow(&self, stderr: impl BufRead) {
        for line in stderr.lines() {
            self.lines.lock().unwrap().0.push(line.unwrap());
            self.grown.notify_all();
        }
        self.lines.lock().unwrap().1 = true;
        self.grown.notify_all();
    }
}

/// A whole file from a policy: memory only, text log, own ports. Every client here is on loopback,
/// which the built-in allowlist would exempt; a policy that has its own `[access]` keeps it.
fn settings(endpoint: &str, speak: &str, http: SocketAddr, policy: &str) -> String {
    let access = if policy.contains("[access]") { "" } else { "[access]\nallow = []\n" };
    let unix = endpoint.starts_with("unix:");
    let owner = if unix { "socket_group = \"postfix\"\n" } else { "" };
    format!(
        r#"{access}{policy}
[server]
hostname = "throttle.example.org"
[[listen]]
milter = "{endpoint}"
speak = "{speak}"
{owner}[control]
http = "{http}"
socket = "none"
[state]
path = "none"
[log]
format = "text"
"#
    )
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
