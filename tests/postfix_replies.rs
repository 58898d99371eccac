//! What a client is told in each situation, with the rules as they are written in
//! `conf/large-mx.toml`: a real Postfix, postpone with the whole of that policy, one number of
//! which is made so small that a few visits meet it, and clients who read the reply.

mod support;

use support::daemon::{Daemon, HOSTNAME};
use support::mx::{ANNA, BERT, CARL, DECISIONS, SENDER, greeted, visit};
use support::postfix::{HOSTNAME as POSTFIX, Postfix, Settings};
use support::smtp::{Client, Reply, swaks, swaks_with};
use support::{stopwatch, wait_until};
use toml::{Table, Value};

/// Domains that ask for more in the policy, and what it calls our help page.
const BANK: &str = "clerk@bank.example";
const BRANCH: &str = "clerk@branch.example";
const URL: &str = "https://postmaster.example.org/slow-down";

/// A ready policy as it is written, but for what a story changes.
struct Policy(Table);

impl Policy {
    fn large_mx() -> Self {
        Self::of(include_str!("../conf/large-mx.toml"))
    }

    /// All that is changed without a story: where it runs, how busy the machine is that tests run
    /// on, and that every client is on loopback, which is allowed everything.
    fn of(text: &str) -> Self {
        let mut policy = Policy(toml::from_str(text).expect("a ready policy is TOML"));
        policy.0.remove("listen");
        policy.0.remove("load");
        policy.section("server").insert("hostname".into(), HOSTNAME.into());
        policy.section("access").insert("allow".into(), Value::Array(Vec::new()));
        policy
    }

    /// Enforces a limit of the policy, with this number in place of its own.
    fn enforcing(mut self, limit: &str, key: &str, number: impl Into<Value>) -> Self {
        let limits = self.0["limit"].as_array_mut().into_iter().flatten();
        let mut limits = limits.filter_map(Value::as_table_mut);
        let limit = limits.find(|entry| entry["name"].as_str() == Some(limit));
        let limit = limit.expect("a limit of the policy");
        let own = limit.insert(key.into(), number.into());
        own.expect("a number of the limit");
        limit.remove("mode");
        self
    }

    fn enforcing_greylist(mut self, delay: &str) -> Self {
        let greylist = self.section("greylist");
        greylist.insert("delay".into(), delay.into());
        greylist.insert("mode".into(), "enforce".into());
        self
    }

    fn section(&mut self, name: &str) -> &mut Table {
        self.0[name].as_table_mut().expect("a section of the policy")
    }

    fn serve(self) -> (Daemon, Postfix) {
        self.serve_with(|postfix| postfix)
    }

    fn serve_with(self, more: impl FnOnce(Settings) -> Settings) -> (Daemon, Postfix) {
        let daemon = Daemon::start(&self.0.to_string());
        let postfix = more(Postfix::with_milter(&daemon.endpoint)).start();
        (daemon, postfix)
    }
}

/// The reply is one line with these words and the wait, and nothing else.
#[track_caller]
fn said(reply: &Reply, codes: &str, words: &str) {
    let wait = reply.wait_secs();
    let line = format!("{codes} {HOSTNAME} {words}; retry in {wait} seconds");
    assert_eq!(reply.lines, [line]);
    assert!(wait > 0);
}

/// The same, and the server hung up.
#[track_caller]
fn told(reply: Reply, client: Client, codes: &str, words: &str) {
    said(&reply, codes, words);
    client.closed();
}

/// A client that Postfix knows by this name and address.
fn known_as(postfix: &Postfix, name: &str, address: &str) -> Client {
    let mut client = Client::connect(postfix.smtp, ANNA);
    client.ehlo().expect(250);
    client.say(&format!("XCLIENT NAME={name} ADDR={address}")).expect(220);
    client.helo().expect(250);
    client
}

#[test]
fn ordinary_mail_passes_the_policy_as_it_is() {
    let (daemon, postfix) = Policy::large_mx().serve();
    let mut client = greeted(&postfix, ANNA);
    for to in ["a", "b", "c"] {
        client.deliver(SENDER, &[to]);
    }
    client.deliver("", &["d", "e"]);
    client.quit();
    let mut client = known_as(&postfix, "192-0-2-7.dyn.example.net", "192.0.2.7");
    client.deliver(SENDER, &["f"]);
    client.quit();
    postfix.delivered(&["a", "b", "c", "d", "e", "f"]);
    for action in ["close", "defer"] {
        assert_eq!(daemon.metric(DECISIONS, &[("action", action)]), 0.0);
    }
}

#[test]
fn too_many_concurrent_connections_from_your_network() {
    let (daemon, postfix) = Policy::large_mx().enforcing("sessions", "max", 2).serve();
    let _two = [greeted(&postfix, ANNA), greeted(&postfix, ANNA)];
    let mut third = Client::connect(postfix.smtp, ANNA);
    let reply = third.helo();
    told(reply, third, "421 4.7.0", "Too many concurrent connections from your network");
    daemon.decision(&[("limit", "sessions"), ("action", "close"), ("client", ANNA)]);
    visit(&postfix, BERT, "bert");
    postfix.delivered(&["bert"]);
}

#[test]
fn too_many_new_connections_from_your_network() {
    let (_daemon, postfix) = Policy::large_mx().enforcing("connections", "quota", "1/1h").serve();
    visit(&postfix, ANNA, "one");
    let mut second = Client::connect(postfix.smtp, ANNA);
    let reply = second.ehlo();
    told(reply, second, "421 4.7.0", "Too many new connections from your network");
    visit(&postfix, BERT, "bert");
    postfix.delivered(&["one", "bert"]);
}

#[test]
fn too_many_messages_from_your_network() {
    let (_daemon, postfix) = Policy::large_mx().enforcing("messages", "quota", "2/1h").serve();
    let mut client = greeted(&postfix, ANNA);
    client.deliver("a@example.net", &["one"]);
    client.deliver("b@example.net", &["two"]);
    let reply = client.mail("c@example.net");
    told(reply, client, "421 4.7.0", "Too many messages from your network");
    visit(&postfix, BERT, "bert");
    postfix.delivered(&["one", "two", "bert"]);
}

#[test]
fn rate_limit_for_a_sender_with_its_address() {
    let (daemon, postfix) = Policy::large_mx().enforcing("sender", "quota", "1/1h").serve();
    let mut client = greeted(&postfix, ANNA);
    client.deliver(SENDER, &["one"]);
    client.deliver("somebody.else@example.net", &["two"]);
    let reply = client.mail(SENDER);
    told(reply, client, "421 4.7.0", &format!("Too many messages from {SENDER}"));
    daemon.decision(&[("limit", "sender"), ("sender", SENDER), ("event", "mail")]);
    visit(&postfix, BERT, "bert"); // in the same name, from elsewhere
    postfix.delivered(&["one", "two", "bert"]);
}

#[test]
fn too_many_recipients_from_your_network() {
    let (_daemon, postfix) = Policy::large_mx().enforcing("recipients", "quota", "2/1h").serve();
    let mut client = greeted(&postfix, ANNA);
    client.mail(SENDER).expect(250);
    client.rcpt("a").expect(250);
    client.rcpt("b").expect(250);
    said(&client.rcpt("c"), "452 4.5.3", "Too many recipients from your network");
    client.data().expect(354);
    client.message().expect(250);
    postfix.delivered(&["a", "b"]);
}

#[test]
fn unusual_volume_from_your_address() {
    let quota = "1MiB/1h burst 1MiB";
    let (daemon, postfix) = Policy::large_mx().enforcing("volume", "quota", quota).serve();
    let sized =
        |client: &mut Client, size: u64| client.say(&format!("MAIL FROM:<{SENDER}> SIZE={size}"));
    let mut client = Client::connect(postfix.smtp, ANNA);
    client.ehlo().expect(250);
    sized(&mut client, 1 << 20).expect(250);
    client.rcpt("one").expect(250);
    client.data().expect(354);
    client.message().expect(250);
    let reply = sized(&mut client, 100 << 10);
    let words = format!("Unusual volume of mail from your address {ANNA}");
    told(reply, client, "421 4.7.0", &words);
    daemon.decision(&[("limit", "volume"), ("client", ANNA), ("event", "mail")]);
    visit(&postfix, BERT, "bert");
    postfix.delivered(&["one", "bert"]);
}

#[test]
fn excessive_volume_to_a_recipient_domain_with_a_link() {
    let policy = Policy::large_mx().enforcing("domain", "quota", "1/1h");
    let (daemon, postfix) = policy.serve_with(|postfix| postfix.with_domain("other.example"));
    visit(&postfix, ANNA, "one");
    let mut client = greeted(&postfix, BERT); // whoever sends
    client.mail(SENDER).expect(250);
    let words = format!("Excessive volume to example.org, see {URL}");
    said(&client.rcpt("two"), "451 4.7.1", &words);
    client.rcpt("three@other.example").expect(250);
    client.data().expect(354);
    client.message().expect(250);
    client.quit();
    daemon.decision(&[("limit", "domain"), ("action", "defer"), ("recipient", "two@example.org")]);
    postfix.delivered(&["one", "three@other.example"]);
}

#[test]
fn tls_required_for_the_recipient_domain() {
    let served = |postfix: Settings| postfix.with_domain("bank.example").with_tls();
    let (daemon, postfix) = Policy::large_mx().serve_with(served);
    let words = "TLS required for bank.example";
    let mut plain = greeted(&postfix, ANNA);
    plain.mail(SENDER).expect(250);
    let reply = plain.rcpt(BANK);
    told(reply, plain, "421 4.7.0", words);
    daemon.decision(&[("reason", "access"), ("recipient", BANK), ("action", "close")]);

    // Whom the MTA has accepted already is not thrown away.
    let mut both = greeted(&postfix, ANNA);
    both.mail(SENDER).expect(250);
    both.rcpt("one").expect(250);
    said(&both.rcpt(BANK), "451 4.7.0", words);
    both.data().expect(354);
    both.message().expect(250);
    both.quit();

    let plain = swaks(postfix.smtp, BERT, SENDER, BANK);
    assert!(plain.contains(&format!("<** 421 4.7.0 {HOSTNAME} {words}; retry in ")), "{plain}");
    let encrypted = swaks_with(&["-tls"], postfix.smtp, BERT, SENDER, BANK);
    assert!(encrypted.contains("=== TLS started"), "{encrypted}");
    assert!(encrypted.contains("<~  250 2.0.0 Ok: queued"), "{encrypted}");
    postfix.delivered(&["one", BANK]);
}

#[test]
fn not_in_the_allowlist_of_the_recipient_domain() {
    let served = |postfix: Settings| postfix.with_domain("branch.example");
    let (daemon, postfix) = Policy::large_mx().serve_with(served);
    let mut outside = known_as(&postfix, "mail.example.net", "192.0.2.7");
    outside.deliver(SENDER, &["one"]); // other domains do not ask
    outside.mail(SENDER).expect(250);
    let reply = outside.rcpt(BRANCH);
    let words = "Your network is not in the allowlist for branch.example";
    told(reply, outside, "421 4.7.0", words);
    daemon.decision(&[("reason", "access"), ("recipient", BRANCH), ("client", "192.0.2.7")]);
    // By its address, and by its name.
    for (name, address) in
        [("mail.example.net", "203.0.113.7"), ("out.partner.example", "192.0.2.8")]
    {
        let mut inside = known_as(&postfix, name, address);
        inside.deliver(SENDER, &[BRANCH]);
        inside.quit();
    }
    postfix.delivered(&["one", BRANCH, BRANCH]);
}

#[test]
fn too_many_errors_with_unknown_recipients() {
    let policy = Policy::large_mx().enforcing("errors", "quota", "3/1h");
    let (daemon, postfix) = policy.serve_with(|postfix| postfix.with_mailbox("one"));
    let words = "Too many errors (unknown recipients) from your network";
    let mut client = greeted(&postfix, ANNA);
    client.deliver(SENDER, &["one"]);
    client.mail(SENDER).expect(250);
    for guess in ["info", "sales", "admin", "office"] {
        let reply = client.rcpt(guess).expect(550);
        assert_eq!(reply.enhanced, "5.1.1", "{reply:?}"); // Postfix's own word, before and after
        assert!(reply.text.contains("User unknown"), "{reply:?}");
    }
    client.say("RSET").expect(250);
    let reply = client.mail(SENDER);
    told(reply, client, "421 4.7.0", words);
    daemon.decision(&[("limit", "errors"), ("event", "mail"), ("action", "close")]);
    let mut again = Client::connect(postfix.smtp, ANNA);
    let reply = again.helo();
    told(reply, again, "421 4.7.0", words);
    visit(&postfix, BERT, "one");
    postfix.delivered(&["one", "one"]);
}

/// Whether Postfix says 550 or, still unsure of its own settings, 450.
#[test]
fn unknown_recipients_that_are_refused_softly_count_as_well() {
    for (setting, enhanced) in
        [("soft_bounce = yes", "4.1.1"), ("unknown_virtual_mailbox_reject_code = 450", "4.1.1")]
    {
        let policy = Policy::large_mx().enforcing("errors", "quota", "3/1h");
        let (daemon, postfix) =
            policy.serve_with(|postfix| postfix.with_mailbox("one").with(setting));
        let mut client = greeted(&postfix, ANNA);
        client.mail(SENDER).expect(250);
        for guess in ["info", "sales", "admin", "office"] {
            let reply = client.rcpt(guess).expect(450);
            assert_eq!(reply.enhanced, enhanced, "{setting}: {reply:?}");
        }
        client.say("RSET").expect(250);
        let reply = client.mail(SENDER);
        told(reply, client, "421 4.7.0", "Too many errors (unknown recipients) from your network");
        daemon.decision(&[("limit", "errors"), ("event", "mail"), ("action", "close")]);
    }
}

#[test]
fn too_many_errors_of_a_host_without_a_name() {
    let policy = Policy::large_mx().enforcing("errors-dynamic", "quota", "1/1h");
    let (_daemon, postfix) = policy.serve_with(|postfix| postfix.with_mailbox("one"));
    let err_once = |client: &mut Client| {
        client.mail(SENDER).expect(250);
        client.rcpt("guess").expect(550);
        client.say("RSET").expect(250);
    };
    let mut named = known_as(&postfix, "mail.example.net", "192.0.2.8");
    err_once(&mut named);
    named.deliver(SENDER, &["one"]);
    let mut generic = known_as(&postfix, "192-0-2-7.dyn.example.net", "192.0.2.7");
    err_once(&mut generic);
    let reply = generic.mail(SENDER);
    let words = "Too many errors (unknown recipients) from your network";
    told(reply, generic, "421 4.7.0", words);
    postfix.delivered(&["one"]);
}

#[test]
fn a_dynamic_address_is_told_so() {
    let (daemon, postfix) = Policy::large_mx().enforcing("dynamic", "quota", "1/1h").serve();
    for (name, address) in [
        ("192-0-2-7.dyn.example.net", "192.0.2.7"),
        ("[UNAVAILABLE]", "192.0.2.9"),
        ("2001-db8-0-1--a.dyn.example.net", "IPV6:2001:db8:0:1::a"),
    ] {
        let mut client = known_as(&postfix, name, address);
        client.deliver(SENDER, &["one"]);
        let reply = client.mail(SENDER);
        let address = address.trim_start_matches("IPV6:");
        let words = format!(
            "Your address {address} looks dynamic, send through your provider or see {URL}"
        );
        told(reply, client, "421 4.7.1", &words);
        daemon.decision(&[("limit", "dynamic"), ("client", address), ("event", "mail")]);
    }
    let mut proper = known_as(&postfix, "mail.example.net", "192.0.2.8");
    for to in ["a", "b", "c"] {
        proper.deliver(SENDER, &[to]);
    }
    proper.quit();
    postfix.delivered(&["one", "one", "one", "a", "b", "c"]);
}

#[test]
fn too_many_different_helo_names_from_your_network() {
    let (_daemon, postfix) = Policy::large_mx().enforcing("helo-names", "max", 2).serve();
    let named = |name: &str| {
        let mut client = Client::connect(postfix.smtp, CARL);
        let reply = client.say(&format!("EHLO {name}"));
        (client, reply)
    };
    for name in ["a.example.net", "b.example.net", "a.example.net"] {
        named(name).1.expect(250);
    }
    let (client, reply) = named("c.example.net");
    told(reply, client, "421 4.7.0", "Too many different HELO names from your network");
    named("b.example.net").1.expect(250);
}

#[test]
fn greylisted_with_the_time_to_retry() {
    let passed = stopwatch();
    let (daemon, postfix) = Policy::large_mx().enforcing_greylist("1s").serve();
    let mut client = greeted(&postfix, ANNA);
    client.mail(SENDER).expect(250);
    said(&client.rcpt("one"), "451 4.7.1", "Greylisted, this is a first contact");
    client.quit();
    daemon.decision(&[("reason", "greylist"), ("action", "defer"), ("client", ANNA)]);
    wait_until("the retry to pass", || {
        let mut client = greeted(&postfix, ANNA);
        client.mail(SENDER).expect(250);
        (client.rcpt("one").code == 250).then(|| {
            client.data().expect(354);
            client.message().expect(250);
        })
    });
    assert!(passed().as_secs_f64() >= 1.0, "passed after {:?}", passed());
    postfix.delivered(&["one"]);
}

#[test]
fn a_user_whose_password_may_be_stolen_is_told_too() {
    let policy = Policy::of(include_str!("../conf/submission.toml"));
    let policy = policy.enforcing("user-minute", "quota", "2/1h");
    let daemon = Daemon::speaking("mail", &policy.0.to_string());
    let postfix = Postfix::with_milter(&daemon.endpoint).with_user("alice", "secret").start();
    let alice = |source| {
        let mut client = Client::connect(postfix.smtp, source);
        client.ehlo().expect(250);
        client.auth_plain("alice", "secret").expect(235);
        client
    };
    // Wherever she, or who has stolen it, sends from.
    alice(ANNA).deliver(SENDER, &["one"]);
    alice(BERT).deliver(SENDER, &["two"]);
    let mut third = alice(CARL);
    let reply = third.mail(SENDER);
    let words =
        "Your account sends very fast; if it is not you, see https://www.example.org/mail-help";
    told(reply, third, "421 4.7.0", words);
    daemon.decision(&[("limit", "user-minute"), ("user", &format!("alice@{POSTFIX}"))]);
    visit(&postfix, ANNA, "three"); // nobody's account
    postfix.delivered(&["one", "two", "three"]);
}
