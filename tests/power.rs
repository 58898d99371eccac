//! An MTA's host loses power in the middle of a session: nothing says so, and the session is given back
//! all the same. Two network namespaces, and the link between them is cut. Needs root.

#![allow(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use support::daemon::Daemon;
use support::{as_root, stopwatch, wait_for};

/// Two hosts with a wire between them, removed with all that is in them.
struct Hosts {
    ours: String,
    theirs: String,
}

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).status();
    assert!(done.expect("ip (iproute2)").success(), "ip {arguments}");
}

impl Hosts {
    fn new() -> Self {
        as_root(); // it makes network namespaces
        let [ours, theirs] = ["mx", "mta"].map(|name| format!("pp-{name}-{}", std::process::id()));
        let hosts = Self { ours, theirs };
        let Self { ours, theirs } = &hosts;
        ip(&format!("netns add {ours}"));
        ip(&format!("netns add {theirs}"));
        ip(&format!("-n {ours} link add wire type veth peer name wire netns {theirs}"));
        ip(&format!("-n {ours} link set lo up"));
        for (host, address) in [(ours, "192.0.2.1/24"), (theirs, "192.0.2.7/24")] {
            ip(&format!("-n {host} address add {address} dev wire"));
            ip(&format!("-n {host} link set wire up"));
        }
        hosts
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in [&self.ours, &self.theirs] {
            let _ = Command::new("ip").args(["netns", "del", host]).status();
        }
    }
}

/// An MTA on the other host, in the middle of a session.
struct Mta(Child);

impl Mta {
    /// With a session that is open: it has been answered.
    fn in_session(host: &str) -> Self {
        let session = r#"exec 3<>/dev/tcp/192.0.2.1/7421
            printf '\0\0\0\15O\0\0\0\6\0\0\1\377\0\37\377\377' >&3
            printf '\0\0\0\22Cx\0004\000\031203.0.113.7\0' >&3
            head -c 4 <&3 | od -An -tx1
            read -r until_the_end"#;
        let mut bash = Command::new("ip")
            .args(["netns", "exec", host, "bash", "-c", session])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut answer = String::new();
        BufReader::new(bash.stdout.take().unwrap()).read_line(&mut answer).unwrap();
        assert!(!answer.trim().is_empty(), "the daemon has answered");
        Self(bash)
    }
}

impl Drop for Mta {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_host_that_loses_power_gives_its_sessions_back() {
    let hosts = Hosts::new();
    let command = ["ip", "netns", "exec", &hosts.ours];
    let daemon = Daemon::at("inet:192.0.2.1:7421", "", &command, "limit = []\n");
    let open = || {
        let status: serde_json::Value =
            serde_json::from_str(&daemon.told(&["status", "--json"])).unwrap();
        status["sessions_open"].as_u64().unwrap()
    };
    let _mta = Mta::in_session(&hosts.theirs);
    wait_for(support::PATIENCE, "the session to be open", || (open() == 1).then_some(()));
    ip(&format!("-n {} link set wire down", hosts.theirs));
    let passed = stopwatch();
    // The kernel's own time: fifteen seconds of silence, thirty without an answer, one interval more.
    wait_for(support::PATIENCE * 3, "it to be given back", || (open() == 0).then_some(()));
    assert!(passed() < std::time::Duration::from_secs(40), "{:?}", passed());
}
