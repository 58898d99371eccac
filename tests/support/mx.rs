//! A mail exchanger in the stories: postpone with a policy, a Postfix that asks it, and its visitors.

use super::daemon::{Daemon, HOSTNAME};
use super::postfix::Postfix;
use super::smtp::{Client, Reply};
use super::wait_until;

/// The metrics' names, once: `reason` and `action` label the decisions, shadowed ones apart.
pub const DECISIONS: &str = "postpone_decisions_total";
pub const SHADOWED: &str = "postpone_shadowed_total";
pub const SESSIONS_OPEN: &str = "postpone_sessions_open";

pub const SENDER: &str = "sender@example.net";
/// Three clients of different networks.
pub const ANNA: &str = "127.1.2.3";
pub const BERT: &str = "127.4.5.6";
pub const CARL: &str = "127.7.8.9";

/// Postpone with this policy, and a Postfix that asks it.
pub fn mx(policy: &str) -> (Daemon, Postfix) {
    let daemon = Daemon::start(policy);
    let postfix = Postfix::with_milter(&daemon.endpoint).start();
    (daemon, postfix)
}

pub fn velocity(quota: &str, more: &str) -> String {
    limit("velocity", "messages", &format!("quota = \"{quota}\"\n{more}"))
}

pub fn limit(name: &str, count: &str, rest: &str) -> String {
    format!("[[limit]]\nname = \"{name}\"\ncount = \"{count}\"\nper = [\"network\"]\n{rest}\n")
}

/// Nothing but greylisting: the built-in limits would not bear how impatiently we retry.
pub fn greylist(more: &str) -> String {
    format!("limit = []\n[greylist]\nmode = \"enforce\"\ndelay = \"1s\"\n{more}")
}

pub fn greeted(postfix: &Postfix, source: &str) -> Client {
    let mut client = Client::connect(postfix.smtp, source);
    client.greeting.clone().expect(220);
    client.helo().expect(250);
    client
}

/// A whole visit: one message, all of it accepted.
pub fn visit(postfix: &Postfix, source: &str, to: &str) {
    let mut client = greeted(postfix, source);
    client.deliver(SENDER, &[to]);
    client.quit();
}

/// The reply is ours, whole, and the server hung up.
#[track_caller]
pub fn told(reply: Reply, client: Client, enhanced: &str, phrase: &str) {
    assert_eq!((reply.code, reply.enhanced.as_str()), (421, enhanced), "{reply:?}");
    assert!(reply.text.starts_with(HOSTNAME) && reply.text.contains(phrase), "{reply:?}");
    assert!(reply.wait_secs() > 0, "{reply:?}");
    client.closed();
}

pub fn no_session_is_left(daemon: &Daemon) {
    wait_until("every session to be given back", || {
        (daemon.metric(SESSIONS_OPEN, &[]) == 0.0).then_some(())
    });
}
