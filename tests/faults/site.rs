//! The site that mail comes to: a Postfix at its defaults, the daemon as its milter and its policy
//! service, and what is done to them.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use super::pause;
use super::plan::{Fault, Step};
use super::seen::{Seen, Usage};
use super::support::daemon::{Daemon, HOSTNAME, postpone};
use super::support::disk::{Disk, Full, Hanging};
use super::support::hostclock::HostClock;
use super::support::mx::SESSIONS_OPEN;
use super::support::postfix::Postfix;
use super::support::{Folder, PATIENCE, free_port, stopwatch, wait_until};

pub struct Site<'a> {
    disk: &'a Disk,
    hanging: Option<Hanging<'a>>,
    full: Option<Full>,
    clock: HostClock,
    clock_folder: Folder,
    milter: String,
    policy_service: String,
    /// None while it is down.
    daemon: Option<Daemon>,
    life: Life,
    /// How often the settings have been changed.
    edition: u32,
    pub mx: Postfix,
    commands: Vec<JoinHandle<String>>,
    pub seen: Seen,
}

/// What is to become of the process.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Serves,
    /// It was told to end, and is to be started again once it has, and the fault is over; whether the
    /// disk of the state was full meanwhile.
    Ends {
        by: Signal,
        fault_is_over: bool,
        was_full: bool,
    },
}

impl<'a> Site<'a> {
    pub fn open(disk: &'a Disk) -> Self {
        let clock_folder = Folder::new("clock");
        let [milter, policy_service] =
            [free_port(), free_port()].map(|port| format!("inet:127.0.0.1:{port}"));
        let mx = Postfix::with_milter(&milter)
            .with_policy_service(&policy_service, &["recipient", "end_of_data"])
            .start();
        let mut site = Self {
            disk,
            hanging: None,
            full: None,
            clock: HostClock::of(&clock_folder),
            clock_folder,
            milter,
            policy_service,
            daemon: None,
            life: Life::Serves,
            edition: 0,
            mx,
            commands: Vec::new(),
            seen: Seen::default(),
        };
        site.start();
        let daemon = site.daemon.as_ref().expect("it was started");
        is_loaded(daemon);
        site.seen.idle = Usage::of(daemon.pid()).expect("it runs");
        site
    }

    pub fn take(&mut self, step: Step) {
        match step {
            Step::Begins(fault) => self.begin(fault),
            Step::Ends(fault) => self.end(fault),
        }
    }

    fn begin(&mut self, fault: Fault) {
        match fault {
            Fault::Kill => self.finish(Signal::KILL),
            Fault::Terminate => self.finish(Signal::TERM),
            Fault::Hang => self.signal(Signal::STOP),
            Fault::Reload => {
                self.edition += 1;
                self.reload(&self.policy());
            }
            Fault::BadReload => self.reload("[greylist]\ndelay = \"soon\"\n"),
            Fault::Bypass => self.command(&["bypass", "on", "--for", "1m"]),
            Fault::Maintenance => self.command(&["maintenance", "on", "--for", "20s"]),
            Fault::DiskFull => {
                self.full = Some(self.disk.is_full());
                if let Life::Ends { was_full, .. } = &mut self.life {
                    *was_full = true;
                }
            }
            Fault::DiskHangs => self.hanging = Some(self.disk.hangs()),
            Fault::Clock(span) => self.clock.is_off_by(span),
            Fault::LogUnread => self.log_is_read(false),
            Fault::SmtpdsKilled => self.kill_smtpds(),
        }
    }

    fn end(&mut self, fault: Fault) {
        match fault {
            Fault::Kill | Fault::Terminate => {
                if let Life::Ends { fault_is_over, .. } = &mut self.life {
                    *fault_is_over = true;
                }
            }
            Fault::Hang => self.signal(Signal::CONT),
            Fault::BadReload => self.reload(&self.policy()),
            Fault::Bypass => self.command(&["bypass", "off"]),
            Fault::Maintenance => self.command(&["maintenance", "off"]),
            Fault::DiskFull => self.full = None,
            Fault::DiskHangs => self.hanging = None,
            Fault::Clock(_) => self.clock.is_off_by("+0"),
            Fault::LogUnread => self.log_is_read(true),
            Fault::Reload | Fault::SmtpdsKilled => (),
        }
    }

    /// Looks after the daemon: it must not end by itself, and is started again when it was to end.
    pub fn look(&mut self) {
        let Some(daemon) = &mut self.daemon else {
            if let Life::Ends { fault_is_over: true, .. } = self.life {
                self.start();
            }
            return;
        };
        let Some(status) = daemon.ended() else {
            if let Some(usage) = Usage::of(daemon.pid()) {
                self.seen.most = self.seen.most.or_more(usage);
            }
            return;
        };
        match self.life {
            // 74: state could not be saved.
            Life::Ends { by: Signal::TERM, was_full, .. } => {
                let wanted = if status.code() == Some(74) { was_full } else { status.success() };
                assert!(wanted, "SIGTERM: {status}");
            }
            Life::Ends { .. } => (),
            Life::Serves => panic!("the daemon ended by itself: {status}"),
        }
        let daemon = self.daemon.take().expect("it was there");
        self.seen.heard(&daemon.lines());
    }

    fn start(&mut self) {
        let variables = self.clock.variables().map(|(name, value)| format!("{name}={value}"));
        let command: Vec<&str> =
            ["env"].into_iter().chain(variables.iter().map(String::as_str)).collect();
        let policy = self.policy();
        self.daemon = Some(Daemon::at(&self.milter, &self.policy_service, &command, &policy));
        self.life = Life::Serves;
        self.seen.starts += 1;
    }

    fn finish(&mut self, by: Signal) {
        self.signal(by);
        self.life = Life::Ends { by, fault_is_over: false, was_full: self.full.is_some() };
    }

    /// A process that has ended has no use for it.
    fn signal(&self, signal: Signal) {
        if let Some(daemon) = &self.daemon {
            daemon.signal(signal);
        }
    }

    fn reload(&self, policy: &str) {
        if let Some(daemon) = &self.daemon {
            daemon.reload(policy);
        }
    }

    fn log_is_read(&self, read: bool) {
        if let Some(daemon) = &self.daemon {
            daemon.log_is_read(read);
        }
    }

    /// What an administrator types, who may wait for a daemon that hangs.
    fn command(&mut self, arguments: &[&str]) {
        let Some(daemon) = &self.daemon else { return };
        let socket = daemon.control.to_str().expect("a path of ours").to_owned();
        let arguments: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
        self.commands.push(thread::spawn(move || {
            let arguments = arguments.iter().map(String::as_str);
            let arguments: Vec<&str> =
                ["ctl", "--socket", &socket].into_iter().chain(arguments).collect();
            let output = postpone(&arguments);
            let said = String::from_utf8_lossy(&output.stderr).replace(&socket, "SOCKET");
            let ended = output.status.code().map_or("killed".to_owned(), |code| code.to_string());
            format!("exit {ended} {}", said.lines().next().unwrap_or_default())
        }));
    }

    /// All that are there: those in a session drop it, and master starts others.
    fn kill_smtpds(&self) {
        for pid in self.mx.processes("smtpd") {
            // It may have ended meanwhile.
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// Limits and delays that are felt, and no mail that could not get through in time.
    fn policy(&self) -> String {
        let quota = 90 + self.edition % 3;
        let state = self.disk.place.join("state");
        format!(
            r#"[server]
hostname = "{HOSTNAME}"
grace = "5s"
workers = 2
[greylist]
mode = "enforce"
delay = "5s"
proven_after = 200
[behaviour]
learn_for = "0s"
slow = "3000/1h"
quota = "2000/1h"
probes = "1000/1h"
[state]
path = "{state}"
flush = "200ms"
[[limit]]
name = "sessions"
count = "sessions"
max = 6
retry = "5s"
[[limit]]
name = "messages"
count = "messages"
quota = "{quota}/1m burst 20"
penalty = {{ factor = 2, cap = "20s", decay = "20s" }}
[[limit]]
name = "recipients"
count = "recipients"
quota = "240/1m burst 60"
[[limit]]
name = "senders"
count = "distinct_senders"
max = 45
window = "1m"
"#,
            state = state.display(),
        )
    }

    /// Lets everything pass from now on.
    pub fn lets_everything_pass(&self) {
        self.daemon.as_ref().expect("it serves").told(&["bypass", "on", "--for", "1h"]);
    }

    /// Waits until the daemon is well: the faults are over, and nobody is connected any more.
    pub fn recovers(&mut self) {
        let passed = stopwatch();
        while self.life != Life::Serves {
            assert!(passed() < PATIENCE, "the daemon was to be started again");
            self.look();
            pause(Duration::from_millis(50));
        }
        is_loaded(self.daemon.as_ref().expect("it serves"));
    }

    /// What is in use when no session is open, whether every worker answers, and whether what it leaves
    /// on disk is whole.
    pub fn close(mut self) -> Seen {
        let mut daemon = self.daemon.take().expect("it serves");
        wait_until("every session to be given back", || {
            (daemon.metric(SESSIONS_OPEN, &[]) == 0.0).then_some(())
        });
        every_worker_answers(&daemon, &self.mx);
        // An idle smtpd keeps its connection to the policy service.
        self.kill_smtpds();
        wait_until("connections to be given back", || {
            self.seen.at_the_end = Usage::of(daemon.pid()).expect("it runs");
            (self.seen.at_the_end.descriptors <= self.seen.most_descriptors()).then_some(())
        });
        daemon.signal(Signal::TERM);
        assert_eq!(daemon.exit_code(), Some(0));
        self.seen.heard(&daemon.lines());
        let state = self.disk.place.join("state");
        let check = postpone(&["state", "check", "--path", state.to_str().expect("ours")]);
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
        for command in self.commands {
            let ended = command.join().expect("it only runs a program");
            *self.seen.commands.entry(ended).or_default() += 1;
        }
        drop(self.clock_folder);
        self.seen
    }
}

/// Sessions of as many clients as occupy each worker, all open at once, are all counted.
fn every_worker_answers(daemon: &Daemon, mx: &Postfix) {
    let sources = (1..=8).map(|number| format!("127.50.{number}.1"));
    let clients: Vec<_> = sources.map(|source| super::support::mx::greeted(mx, &source)).collect();
    wait_until("eight sessions to be open", || {
        (daemon.metric(SESSIONS_OPEN, &[]) == 8.0).then_some(())
    });
    clients.into_iter().for_each(|client| client.quit());
    wait_until("them to be given back", || {
        (daemon.metric(SESSIONS_OPEN, &[]) == 0.0).then_some(())
    });
}

fn is_loaded(daemon: &Daemon) {
    wait_until("state to be loaded", || {
        (daemon.metric("postpone_state_loading", &[]) == 0.0).then_some(())
    });
}
