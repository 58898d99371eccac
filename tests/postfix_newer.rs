//! The Postfix of Debian 13 (3.10), in a tree of its own that debootstrap makes, since it needs a
//! newer C library than Debian 12 has: what is negotiated away costs no refusal and hangs no session.
//! It needs root and the network, the first time some minutes, and so runs when asked for:
//! `cargo test --test postfix_newer`.

mod support;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use rustix::process::{Pid, Signal, kill_process};
use support::daemon::Daemon;
use support::debian::PLACE_OF_ROOT;
use support::mx::{ANNA, BERT, SENDER, greylist, limit, told, velocity};
use support::smtp::Client;
use support::{Folder, as_root, free_port, wait_until};

/// Runs it over the tree, which stays as it was; all of it ends with its first process.
const RUN: &str = r#"
set -e
mount -t tmpfs tmpfs "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
cd "$2/root"
mount --rbind /dev dev
mount -t proc proc proc
printf '%s' "$3" >etc/postfix/main.cf
sed -i "s/^smtp  *inet.*smtpd$/127.0.0.1:$4 inet n - n - - smtpd/" etc/postfix/master.cf
exec chroot . postfix start-fg"#;

struct Newer {
    smtp: SocketAddr,
    first: Child,
    _folder: Folder,
}

fn tree() -> PathBuf {
    static TREE: OnceLock<PathBuf> = OnceLock::new();
    let make = || {
        let tree = Path::new(PLACE_OF_ROOT).join("trixie-postfix");
        if !tree.exists() {
            let making = tree.with_extension("making");
            let _ = fs::remove_dir_all(&making);
            fs::create_dir_all(&making).expect("root may make folders");
            let options = ["--variant=minbase", "--include=postfix", "trixie"];
            let made = Command::new("debootstrap").args(options).arg(&making).output();
            let made = made.expect("debootstrap: apt-get install debootstrap");
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
            fs::rename(&making, &tree).expect("it was not there");
        }
        tree
    };
    TREE.get_or_init(make).clone()
}

impl Newer {
    fn with_milter(endpoint: &str) -> Self {
        as_root();
        let (folder, port) = (Folder::new("newer"), free_port());
        let main_cf = format!(
            "compatibility_level = 3.10\nmyhostname = mx.example.org\nmydestination = example.org\n\
             inet_interfaces = 127.0.0.1\ninet_protocols = ipv4\nmynetworks = 127.255.255.255/32\n\
             local_recipient_maps =\nlocal_transport = discard\nsmtpd_peername_lookup = no\n\
             smtpd_milters = {{ {endpoint}, default_action=tempfail }}\n"
        );
        let first = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child=KILL", "sh", "-c", RUN, "sh"])
            .arg(tree())
            .arg(folder.path())
            .args([&main_cf, &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("unshare (util-linux) starts Postfix");
        let newer = Self { smtp: ([127, 0, 0, 1], port).into(), first, _folder: folder };
        wait_until("Postfix to listen", || {
            let hex = format!("0100007F:{port:04X} ");
            let listens = fs::read_to_string("/proc/net/tcp").expect("Linux has it").contains(&hex);
            listens.then_some(())
        });
        newer
    }

    fn greeted(&self, source: &str, name: &str) -> Client {
        let mut client = Client::connect(self.smtp, source);
        client.greeting.clone().expect(220);
        client.say(&format!("EHLO {name}")).expect(250);
        client
    }
}

impl Drop for Newer {
    fn drop(&mut self) {
        // With the first process of its namespace all end. That one has changed its user, and so
        // would outlive unshare.
        let pid = self.first.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        for child in children.unwrap_or_default().split_whitespace() {
            let child = child.parse().ok().and_then(Pid::from_raw);
            let _ = child.map(|child| kill_process(child, Signal::KILL));
        }
        let _ = self.first.kill();
        let _ = self.first.wait();
    }
}

fn mx(speak: &'static str, policy: &str) -> (Daemon, Newer) {
    let daemon = Daemon::speaking(speak, policy);
    let newer = Newer::with_milter(&daemon.endpoint);
    (daemon, newer)
}

#[test]
fn its_version_is_the_one_meant() {
    let said = Command::new("chroot").arg(tree()).args(["postconf", "-h", "mail_version"]).output();
    let said = String::from_utf8(said.expect("chroot").stdout).expect("a version");
    assert!(said.starts_with("3.10."), "{said}");
}

#[test]
fn where_data_is_left_out_greylisting_speaks_at_rcpt_and_mail_arrives() {
    let (daemon, newer) = mx("helo", &greylist("proven_after = 9\n"));
    let mut client = newer.greeted(ANNA, "mx.example.net");
    client.mail(SENDER).expect(250);
    client.rcpt("one").expect(451);
    client.quit();
    wait_until("the delay to be over", || {
        let mut client = newer.greeted(ANNA, "mx.example.net");
        client.mail(SENDER).expect(250);
        let passes = client.rcpt("one").code == 250;
        passes.then(|| {
            client.data().expect(354);
            client.message().expect(250);
            // A second message of the same session.
            client.deliver(SENDER, &["one"]);
            client.quit();
        })
    });
    assert_eq!(daemon.metric("postpone_failures_total", &[]), 0.0);
}

#[test]
fn a_421_of_greylisting_is_still_heard_at_data() {
    let reply = "reply = \"421 4.7.1 {hostname} Not yet; retry in {wait} seconds\"\n";
    let (_daemon, newer) = mx("helo", &greylist(reply));
    let mut client = newer.greeted(ANNA, "mx.example.net");
    client.mail(SENDER).expect(250);
    client.rcpt("one").expect(250);
    client.rcpt("two").expect(250);
    let reply = client.data();
    told(reply, client, "4.7.1", "Not yet");
}

#[test]
fn a_session_over_its_limit_is_told_at_mail() {
    let (_daemon, newer) = mx("helo", &velocity("1/1h", ""));
    let mut client = newer.greeted(ANNA, "mx.example.net");
    client.deliver(SENDER, &["one"]);
    let reply = client.mail(SENDER);
    told(reply, client, "4.7.0", "");
    newer.greeted(BERT, "mx.example.net").deliver(SENDER, &["two"]);
}

#[test]
fn nobody_waits_for_an_answer_to_helo_where_users_send_and_helo_counts() {
    let (_daemon, newer) =
        mx("mail", &limit("names", "distinct_helos", "max = 1\nwindow = \"1h\""));
    let mut client = newer.greeted(ANNA, "mx.example.net");
    client.deliver(SENDER, &["one"]);
    client.quit();
    let mut client = newer.greeted(ANNA, "another.example.net");
    let reply = client.mail(SENDER);
    told(reply, client, "4.7.0", "");
}
