//! A host that really bears no more, and the real Postfix on it: strangers are put off with a true
//! reason, the mail of a proven client passes, and when it is over everybody is served as before.
//!
//! What is short is real too: a disk that is small and filled, cores that are given too much to do, a
//! next server that hangs. Disk and cgroup are mounted in a mount namespace of the story's own, in
//! which it runs once more, so nothing of it is left on the host.

#![allow(clippy::unwrap_used)] // what goes wrong in here has to fail the test

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::statvfs;
use rustix::process::Signal;
use support::apart::apart;
use support::daemon::{Daemon, field};
use support::mx::{ANNA, BERT, CARL, SENDER, no_session_is_left, told, visit};
use support::postfix::{HOSTNAME, Postfix};
use support::smtp::{Client, Reply};
use support::wait_until;

const LEVEL: &str = "postpone_load_level";
const ADMITTED: &str = "postpone_load_admitted_ratio";

/// Who comes back from greylisting is proven; the levels are short, the sensors are the story's.
fn policy(sensors: &str) -> String {
    format!(
        "limit = []\n[greylist]\nmode = \"enforce\"\ndelay = \"1s\"\nproven_after = 1\n\
         when = {{ network = [\"{ANNA}/32\"] }}\n\
         [load]\nperiod = \"100ms\"\nhold = \"500ms\"\nramp = \"1s\"\n{sensors}"
    )
}

/// A whole visit, if it is let in.
fn attempt(postfix: &Postfix, source: &str, to: &str) -> Option<()> {
    let mut client = Client::connect(postfix.smtp, source);
    if client.greeting.code != 220 || client.helo().code != 250 {
        return None;
    }
    client.mail(SENDER).expect(250);
    if client.rcpt(to).code != 250 {
        client.quit();
        return None;
    }
    client.data().expect(354);
    client.message().expect(250);
    client.quit();
    Some(())
}

/// Anna comes back from greylisting, once and for all; Bert is served without a history.
fn before(postfix: &Postfix) {
    assert_eq!(attempt(postfix, ANNA, "anna"), None, "a first contact");
    wait_until("Anna to be let in", || attempt(postfix, ANNA, "anna"));
    visit(postfix, BERT, "bert");
}

/// What a stranger hears at HELO, where it hears something.
fn refused(postfix: &Postfix) -> (Reply, Client) {
    wait_until("a stranger to be put off", || {
        let mut client = Client::connect(postfix.smtp, CARL);
        if client.greeting.code != 220 {
            return None;
        }
        match client.helo() {
            reply if reply.code == 421 => Some((reply, client)),
            _ => None,
        }
    })
}

/// What a stranger hears that is closed as it connects: Postfix's words, which name no reason.
fn closed(postfix: &Postfix, daemon: &Daemon) {
    wait_until("a stranger to be closed", || {
        let client = Client::connect(postfix.smtp, CARL);
        (client.greeting.code == 421).then(|| {
            assert!(client.greeting.text.starts_with(HOSTNAME), "{:?}", client.greeting);
            client.closed();
        })
    });
    daemon.decision(&[("reason", "load"), ("event", "connect"), ("client", CARL)]);
}

/// It is over: everybody is served again.
fn after(daemon: &Daemon, postfix: &Postfix) {
    wait_until("the level to be normal", || (daemon.metric(LEVEL, &[]) == 0.0).then_some(()));
    wait_until("all strangers to be let in", || {
        (daemon.metric(ADMITTED, &[("standing", "unknown")]) == 1.0).then_some(())
    });
    visit(postfix, BERT, "bert");
    visit(postfix, CARL, "carl");
    visit(postfix, ANNA, "anna");
    no_session_is_left(daemon);
}

#[track_caller]
fn reached(daemon: &Daemon, level: &str, sensor: &str) -> String {
    daemon.line(&format!("level {level} by {sensor}"), |line| {
        field(line, "level") == Some(level) && field(line, "sensor") == Some(sensor)
    })
}

fn mount(kind: &str, options: &str, place: &Path) -> bool {
    let command = ["-t", kind, "-o", options, "none"];
    Command::new("mount").args(command).arg(place).status().expect("mount").success()
}

/// Fills the disk until so much is left.
fn fill(file: &Path, leave: u64) {
    let disk = statvfs(file.parent().unwrap()).unwrap();
    let own = file.metadata().map_or(0, |file| file.len());
    let size = (disk.f_bavail * disk.f_frsize + own).checked_sub(leave).expect("a disk that large");
    fs::write(file, vec![b'x'; size as usize]).unwrap();
}

const MIB: u64 = 1 << 20;

/// Postfix keeps its queue and its mailboxes there, as everything in this story does.
#[test]
fn a_full_disk_puts_strangers_off() {
    apart("a_full_disk_puts_strangers_off", || {
        let place = PathBuf::from("/mnt");
        assert!(mount("tmpfs", "size=96m,mode=1777", &place), "mount");
        let disk = place.join("disk");
        fs::create_dir(&disk).unwrap();
        let policy = policy(&format!(
            "[[load.disk]]\npath = \"{}\"\nhigh = \"40MiB\"\ncritical = \"24MiB\"\n",
            disk.display()
        ));
        let sensor = format!("disk {}", disk.display());
        let daemon = Daemon::start(&policy);
        let postfix = Postfix::with_milter(&daemon.endpoint).within(&disk).start();
        before(&postfix);

        let junk = disk.join("junk");
        fill(&junk, 25 * MIB);
        reached(&daemon, "high", &sensor);
        let (reply, client) = refused(&postfix);
        told(reply, client, "4.3.1", "Short of space for mail");
        assert_eq!(attempt(&postfix, ANNA, "anna"), Some(()), "she is known");

        // Less than Postfix itself would still take everybody's mail with.
        fill(&junk, 22 * MIB);
        reached(&daemon, "critical", &sensor);
        closed(&postfix, &daemon);
        wait_until("one of her sessions to be let in", || attempt(&postfix, ANNA, "anna"));

        fs::remove_file(&junk).unwrap();
        after(&daemon, &postfix);
        let mut all = vec!["anna"; 4];
        all.extend(["bert", "bert", "carl"]);
        postfix.delivered(&all);
    });
}

/// A host of which one cgroup has more to do than all cores can.
struct Burners {
    cgroup: PathBuf,
    burning: Vec<Child>,
}

impl Burners {
    /// Where the kernel tells the pressure of a cgroup.
    fn new(hierarchy: &Path) -> Result<Self, String> {
        if !mount("cgroup2", "rw", hierarchy) {
            return Err("no cgroup2".into());
        }
        let cgroup = hierarchy.join(format!("postpone-{}", std::process::id()));
        fs::create_dir(&cgroup).map_err(|error| format!("a new cgroup: {error}"))?;
        let new = Self { cgroup, burning: Vec::new() };
        match fs::read_to_string(new.cgroup.join("cpu.pressure")) {
            Ok(_) => Ok(new),
            Err(error) => Err(format!("cpu.pressure: {error}")),
        }
    }

    fn burn(&mut self) {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let burner = || {
            Command::new("setpriv")
                .args(["--pdeathsig", "KILL", "--", "nice", "-n", "19", "sh", "-c"])
                .arg("echo $$ >\"$0\"; while :; do :; done")
                .arg(self.cgroup.join("cgroup.procs"))
                .stdin(Stdio::null())
                .spawn()
                .expect("setpriv and nice")
        };
        self.burning = (0..4 * cores).map(|_| burner()).collect();
    }

    fn stop(&mut self) {
        for mut burner in self.burning.drain(..) {
            let _ = burner.kill();
            let _ = burner.wait();
        }
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        self.stop();
        let _ = fs::remove_dir(&self.cgroup);
    }
}

#[test]
fn cores_with_too_much_to_do_put_strangers_off() {
    apart("cores_with_too_much_to_do_put_strangers_off", || {
        // Of this namespace alone: nothing may ever sweep a folder where cgroups are mounted.
        let mut burners = match Burners::new(Path::new("/mnt")) {
            Ok(burners) => burners,
            // There is no such sensor on this host then.
            Err(why) => return eprintln!("not told here: {why}"),
        };
        let daemon = Daemon::start(&policy(&format!(
            "[[load.cgroup]]\npath = \"{}\"\ncpu = {{ high = 30, critical = 40 }}\n",
            burners.cgroup.display()
        )));
        let sensor = format!("cgroup {}: cpu", burners.cgroup.display());
        let postfix = Postfix::with_milter(&daemon.endpoint).start();
        before(&postfix);

        burners.burn();
        reached(&daemon, "critical", &sensor);
        closed(&postfix, &daemon);
        wait_until("one of her sessions to be let in", || attempt(&postfix, ANNA, "anna"));

        burners.stop();
        // On its way down it is high for a while.
        reached(&daemon, "high", &sensor);
        after(&daemon, &postfix);
        postfix.delivered(&["anna", "anna", "anna", "bert", "bert", "carl"]);
    });
}

/// The next server is a Postfix too. It hangs as one does that has lost its disk: connections are
/// taken, and nothing is said.
#[test]
fn a_next_server_that_hangs_or_is_gone_puts_strangers_off() {
    let next = Postfix::plain().start();
    let daemon = Daemon::start(&policy(&format!(
        "[[load.probe]]\nname = \"next\"\nconnect = \"inet:{}\"\nbanner = \"220 {HOSTNAME} \"\n\
         deadline = \"1s\"\nlevel = \"critical\"\n",
        next.smtp
    )));
    let postfix = Postfix::with_milter(&daemon.endpoint).start();
    before(&postfix);

    next.signal(Signal::STOP);
    reached(&daemon, "critical", "probe.next");
    daemon.line("why", |line| line.contains("no first line within the deadline"));
    closed(&postfix, &daemon);
    wait_until("one of her sessions to be let in", || attempt(&postfix, ANNA, "anna"));
    next.signal(Signal::CONT);
    after(&daemon, &postfix);

    drop(next);
    daemon.line("why", |line| line.contains("Connection refused"));
    closed(&postfix, &daemon);
    wait_until("one of her sessions to be let in", || attempt(&postfix, ANNA, "anna"));
}

/// Asked where its queue is and how many sessions it bears, and watched while mail waits in it.
#[test]
fn the_queue_of_a_real_postfix_is_found_and_counted() {
    let postfix = Postfix::plain().with("defer_transports = virtual").start();
    let config = postfix.folder().to_str().expect("a path of ours");
    let policy = policy(
        "[load.queue]\ndeferred = { high = 3 }\nactive = { high = 100 }\n\
         [load.sessions]\nfrom = \"mta\"\nhigh = 0.9\n",
    );
    let daemon = Daemon::run_by(&[], &[("MAIL_CONFIG", config)], &policy);
    let on = |sensor| daemon.metric("postpone_load_sensor_on", &[("sensor", sensor)]) == 1.0;
    wait_until("all sensors to be on", || {
        ["queue.deferred", "queue.active", "sessions"].into_iter().all(on).then_some(())
    });
    for to in ["one", "two", "three"] {
        visit(&postfix, ANNA, to);
    }
    // In folders of one letter each (hash_queue_names).
    let line = reached(&daemon, "high", "queue.deferred");
    assert_eq!(field(&line, "value"), Some("3.0"), "{line}");
}
