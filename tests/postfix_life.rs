//! The stories an operator would tell of the daemon's life beside a real Postfix: it is reloaded,
//! stopped and killed, and mail flows.

mod support;

use rustix::process::Signal;
use support::daemon::Daemon;
use support::mx::{
    ANNA, BERT, CARL, SENDER, SESSIONS_OPEN, greeted, mx, no_session_is_left, velocity, visit,
};
use support::postfix::Postfix;
use support::smtp::{Client, is_open};
use support::wait_until;

/// What the log says after a reload that worked, and after one that failed: where the mistake is
/// (in these settings a limit's quota stands in the fifth line).
const RELOADED: &str = "reloaded";
const MISTAKE: &str = "postpone.toml:5";

#[test]
fn a_private_postfix_delivers() {
    let postfix = Postfix::plain().with_user("alice", "secret").start();
    let mut client = Client::connect(postfix.smtp, ANNA);
    client.ehlo().expect(250);
    client.auth_plain("alice", "wrong").expect(535);
    client.auth_plain("alice", "secret").expect(235);
    client.deliver(SENDER, &["a", "b"]);
    client.quit();
    let mut client = Client::proxied(postfix.proxied, "2001:db8::7");
    client.helo().expect(250);
    client.deliver(SENDER, &["c"]);
    client.quit();
    postfix.delivered(&["a", "b", "c"]);
    assert!(postfix.log().contains("client=unknown[2001:db8::7]"), "{}", postfix.log());
}

#[test]
fn a_good_reload_holds_for_new_sessions_and_keeps_what_was_counted() {
    let (daemon, postfix) = mx(&velocity("2/1h", ""));
    let mut early = greeted(&postfix, ANNA);
    visit(&postfix, ANNA, "one");
    visit(&postfix, ANNA, "two");
    daemon.reload(&velocity("2/1h burst 3", ""));
    daemon.line("the reload", |line| line.contains(RELOADED));
    // Two of three are spent: one more passes, not three.
    visit(&postfix, ANNA, "three");
    greeted(&postfix, ANNA).mail(SENDER).expect(421);
    daemon.decision(&[("limit", "velocity"), ("threshold", "2/1h burst 3")]);
    // A session keeps the policy it began with.
    early.mail(SENDER).expect(421);
    daemon.decision(&[("limit", "velocity"), ("threshold", "2/1h")]);
    postfix.delivered(&["one", "two", "three"]);
}

#[test]
fn a_bad_reload_changes_nothing_and_says_why() {
    let (daemon, postfix) = mx(&velocity("1/1h", ""));
    let mut early = greeted(&postfix, BERT);
    visit(&postfix, ANNA, "one");
    daemon.reload(&velocity("often", ""));
    daemon.line("the mistake's place", |line| line.contains(MISTAKE));
    greeted(&postfix, ANNA).mail(SENDER).expect(421); // still counted
    visit(&postfix, CARL, "carl"); // still served
    early.deliver(SENDER, &["bert"]); // still the same session
    early.mail(SENDER).expect(421);
    postfix.delivered(&["one", "carl", "bert"]);
}

#[test]
fn after_sigterm_running_sessions_finish_and_new_ones_pass_unasked() {
    let (mut daemon, postfix) = mx(&velocity("1/1h", ""));
    visit(&postfix, ANNA, "one");
    let mut running = greeted(&postfix, BERT);
    running.mail(SENDER).expect(250);
    daemon.signal(Signal::TERM);
    let milter = daemon.endpoint.trim_start_matches("inet:").parse().unwrap();
    wait_until("the milter's port to close", || (!is_open(milter)).then_some(()));
    visit(&postfix, ANNA, "two"); // over its limit, but nobody is there to say so
    running.rcpt("bert").expect(250);
    running.data().expect(354);
    running.message().expect(250);
    running.mail(SENDER).expect(421); // and is still judged
    assert_eq!(daemon.exit_code(), Some(0));
    postfix.delivered(&["one", "two", "bert"]);
}

#[test]
fn when_the_milter_is_killed_mail_still_flows() {
    let (mut daemon, postfix) = mx(&velocity("1/1h", ""));
    let mut running = greeted(&postfix, ANNA);
    running.mail(SENDER).expect(250);
    assert_eq!(daemon.metric(SESSIONS_OPEN, &[]), 1.0); // or it would prove nothing
    daemon.signal(Signal::KILL);
    assert_eq!(daemon.exit_code(), None);
    running.rcpt("one").expect(250);
    running.data().expect(354);
    running.message().expect(250);
    running.deliver(SENDER, &["two"]);
    visit(&postfix, BERT, "bert");
    postfix.delivered(&["one", "two", "bert"]);
}

#[test]
fn a_unix_socket_serves_as_well() {
    let daemon = Daemon::on_unix_socket(&velocity("1/1h", ""));
    let postfix = Postfix::with_milter(&daemon.endpoint).start();
    let mut client = greeted(&postfix, ANNA);
    client.deliver(SENDER, &["one"]);
    client.mail(SENDER).expect(421);
    postfix.delivered(&["one"]);
}

#[test]
fn sessions_are_counted_while_they_last() {
    let (daemon, postfix) = mx(&velocity("1/1h", ""));
    let mut clients: Vec<Client> =
        (1..=9).map(|n| greeted(&postfix, &format!("127.1.1.{n}"))).collect();
    assert_eq!(daemon.metric(SESSIONS_OPEN, &[]), 9.0);
    clients.pop().unwrap().quit();
    let mut refused = clients.pop().unwrap();
    refused.deliver(SENDER, &["one"]);
    refused.mail(SENDER).expect(421);
    drop(clients); // without a word
    no_session_is_left(&daemon);
    assert!(daemon.get("/health").starts_with("HTTP/1.1 200"), "{}", daemon.get("/health"));
}
