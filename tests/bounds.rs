//! Memory that is full: what is dropped, what stays, and what a flood of ever-new clients is told.
//! Timelines as in `tests/scenarios`, with small tables; the crowds of them are made here.

#[path = "scenarios/play.rs"]
mod play;

use std::time::Duration;

use play::{START, engine, play};
use postpone::engine::Answer;
use postpone::front::listen;
use postpone::smtp::address::Address;
use postpone::smtp::client::Client;
use postpone::smtp::event::{Event, Fate};

/// A story with lines for each of many.
struct Story(String);

impl Story {
    fn with(settings: &str) -> Self {
        Self(format!("{settings}\n---\n"))
    }

    fn tell(&mut self, lines: &str) -> &mut Self {
        self.0.extend([lines, "\n"]);
        self
    }

    /// `{n}` is the number in hexadecimal, as in an address.
    fn each(&mut self, numbers: impl IntoIterator<Item = u32>, lines: &str) -> &mut Self {
        for n in numbers {
            self.tell(&lines.replace("{n}", &format!("{n:x}")));
        }
        self
    }

    fn play(&self, name: &str) {
        play(name, &self.0);
    }
}

/// Four meters for each of `max_clients`.
const TWO_AN_HOUR: &str = r#"
[[limit]]
name = "hourly"
count = "messages"
quota = "2/1h"
[greylist]
mode = "enforce"
proven_after = 1
exempt_recipient_domains = ["example.org"]
[state]
max_clients = 1000
"#;

#[test]
fn a_flood_of_new_networks_to_a_crowded_table_counts_under_their_48() {
    let mut story = Story::with(TWO_AN_HOUR);
    // A mail server that comes back to whom it may: its domain is proven.
    story.tell(
        "+0s 2001:db8:1:1::7#1 CONNECT mx.example.net; HELO mx.example.net; MAIL a@example.net
         +0s 2001:db8:1:1::7#1 RCPT b@example.com => defer greylist wait=5m code=451
         +10m 2001:db8:1:1::7#1 RCPT b@example.com; DATA; END
         # Another that has been here, and has earned nothing.
         +2h 2001:db8:1:2::7 CONNECT; HELO mx.example.com; MAIL a@example.com; DATA; END",
    );
    // While there is room, a new /64 is a new client.
    story.each(
        0x10..0x20,
        "+2h 2001:db8:1:{n}::7 CONNECT; MAIL a@example.net; DATA; END
         +2h 2001:db8:1:{n}::7 MAIL a@example.net; DATA; END
         +2h 2001:db8:1:{n}::7 MAIL a@example.net => close rate hourly wait=30m",
    );
    // Others fill the table, each from a /48 of its own.
    story
        .each(0x1000..0x1000 + 3_600, "+2h 2001:db8:{n}::7 CONNECT; MAIL a@example.net; DATA; END");
    // The first of its 65,536 networks have what a single one would.
    story
        .each(0x100..0x102, "+2h 2001:db8:1:{n}::7 CONNECT; HELO x; MAIL a@example.net; DATA; END");
    story.each(
        0x102..0x200,
        "+2h 2001:db8:1:{n}::7 CONNECT; HELO x; MAIL a@example.net => close rate hourly wait=30m",
    );
    // The proven one and one of its neighbours are as new, and are not touched, nor is who has been
    // here before.
    story.tell(
        "+2h 2001:db8:1:3::8 CONNECT mx2.example.net; HELO mx2.example.net
         +2h 2001:db8:1:3::8 MAIL a@example.net; DATA; END => pass
         +2h 2001:db8:1:3::8 MAIL a@example.net; DATA; END => pass
         +2h 2001:db8:1:3::8 MAIL a@example.net => close rate hourly wait=30m
         +2h 2001:db8:1:1::7 CONNECT mx.example.net; MAIL a@example.net; DATA; END => pass
         +2h 2001:db8:1:2::7 MAIL a@example.com; DATA; END => pass
         +2h 2001:db8:1:2::7 MAIL a@example.com => close rate hourly wait=30m
         # Of another /48, and of IPv4, which have done nothing.
         +2h 2001:db8:2:1::7 CONNECT; MAIL a@example.net; DATA; END => pass
         +2h 192.0.2.7 CONNECT; MAIL a@example.net; DATA; END => pass
         metric postpone_table_evicted_total{table=\"meters\"} = 0
         metric postpone_table_entries{table=\"meters\"} = 3622
         metric postpone_table_max_entries{table=\"meters\"} = 4000
         # What was told was true: the /48 has room for one after that time.
         +2h30m 2001:db8:1:102::7 MAIL a@example.net; DATA; END => pass
         +2h30m 2001:db8:1:103::7 MAIL a@example.net => close rate hourly wait=30m",
    );
    story.play("a flood from one /48");
}

#[test]
fn the_sessions_of_a_48_in_a_crowded_table_are_counted_and_given_back_together() {
    let mut story = Story::with(
        "[[limit]]\nname = \"at-once\"\ncount = \"sessions\"\nmax = 2\n[greylist]\nmode = \"off\"\n\
         [state]\nmax_clients = 1000",
    );
    story.tell("+0s 2001:db8:1:1::7#1 CONNECT; HELO mx.example.net");
    // Seven eighths of a thousand.
    story.each(0x1000..0x1000 + 874, "+0s 2001:db8:{n}::7 CONNECT; HELO x");
    story.tell(
        "# Who is here already counts by itself, and its neighbours together.
         +1s 2001:db8:1:1::7#2 CONNECT; HELO mx.example.net
         +1s 2001:db8:1:2::7 CONNECT; HELO mx.example.com
         +1s 2001:db8:1:3::7 CONNECT; HELO mx.example.com
         +1s 2001:db8:1:4::7 CONNECT
         +1s 2001:db8:1:4::7 HELO mx.example.com => close sessions at-once wait=1m
         +1s 2001:db8:1:5::7 CONNECT
         +1s 2001:db8:1:5::7 HELO mx.example.com => close sessions at-once wait=1m
         # Twice as many as allowed are open.
         +1s 2001:db8:1:6::7 CONNECT => close sessions at-once wait=1m
         +1s 2001:db8:1:6::7 QUIT
         metric postpone_table_entries{table=\"gauges\"} = 876
         # Two go. Then one that is admitted takes the place of one.
         +2s 2001:db8:1:4::7 QUIT
         +2s 2001:db8:1:2::7 QUIT
         +2s 2001:db8:1:7::7 CONNECT; HELO mx.example.com
         +2s 2001:db8:1:8::7 CONNECT
         +2s 2001:db8:1:8::7 HELO mx.example.com => close sessions at-once wait=1m
         # And who has its own place is refused at its third, as ever.
         +2s 2001:db8:1:1::7#3 CONNECT
         +2s 2001:db8:1:1::7#3 HELO mx.example.net => close sessions at-once wait=1m",
    );
    // All others go, those of the /48 stay, and what they give back later is theirs: the end of
    // every story is that nothing is held.
    story.each(0x1000..0x1000 + 874, "+3s 2001:db8:{n}::7 QUIT");
    story.tell("metric postpone_sessions_open = 7").play("sessions of one /48");
}

/// What a client has earned, and what it has used of its quotas, outlasts a flood of clients that
/// are here for the first time.
#[test]
fn a_flood_of_new_names_and_clients_pushes_out_nobody_who_is_proven_or_has_used_more() {
    let mut story = Story::with(
        "[[limit]]
         name = \"senders\"
         count = \"messages\"
         per = [\"network\", \"sender\"]
         quota = \"3/3h\"
         [[limit]]
         name = \"names\"
         count = \"messages\"
         per = [\"network\", \"helo\"]
         quota = \"3/3h\"
         [greylist]
         mode = \"enforce\"
         proven_after = 2
         [state]
         max_clients = 1000
         max_triplets = 100000",
    );
    let proven = "192.0.2.7 CONNECT mx.example.org; HELO mx.example.org; MAIL a@example.org";
    story.tell(&format!(
        "+0s {proven}; RCPT b@example.net => defer greylist wait=5m code=451
         +0s 192.0.2.7 RCPT c@example.net => defer greylist wait=5m code=451
         +5m 192.0.2.7 RCPT b@example.net; RCPT c@example.net; DATA; END
         +5m 192.0.2.7 MAIL a@example.org; DATA; END"
    ));
    // Each is new in every table, and comes back once: no more than half of what proves one.
    let known = "metric postpone_table_entries{table=\"proven\"}";
    story.each(
        0..1_500,
        "+10m 2001:db8:{n}::7 CONNECT; HELO h{n}; MAIL a{n}@example.com
         +10m 2001:db8:{n}::7 RCPT b@example.net => defer greylist wait=5m code=451",
    );
    story.each(
        0..1_500,
        "+16m 2001:db8:{n}::7 RCPT b@example.net; DATA; END
         +16m 2001:db8:{n}::7 QUIT",
    );
    story.tell(&format!("{known} = 1000"));
    // And one that has a new name each time.
    story.each(
        0..6_000,
        "+17m 203.0.113.9#{n} CONNECT; HELO h{n}; MAIL a{n}@example.com; DATA; END
         +17m 203.0.113.9#{n} QUIT",
    );
    story.tell(
        "# Three shards have an equal part each of the four thousand.
         metric postpone_table_entries{table=\"meters\"} = 3999
         # The third of three hours passes, the fourth does not; and a first contact passes at once.
         +18m 192.0.2.7 MAIL a@example.org; RCPT new@example.net; DATA; END => pass
         +18m 192.0.2.7 MAIL a@example.org => close rate senders wait=42m",
    );
    story.play("new names and clients");
}

/// Who is proven gives way to nobody, not even to who has proven itself since.
#[test]
fn when_all_who_are_known_are_proven_another_is_not_remembered() {
    let mut story = Story::with(
        "limit = []
         [greylist]
         mode = \"enforce\"
         proven_after = 1
         [state]
         max_clients = 1000
         max_triplets = 100000",
    );
    story.each(
        0..1_200,
        "+0s 2001:db8:{n}::7 CONNECT; HELO x; MAIL a@example.com
         +0s 2001:db8:{n}::7 RCPT b@example.net => defer greylist wait=5m code=451",
    );
    story.each(0..1_200, "+5m 2001:db8:{n}::7 RCPT b@example.net; DATA; END");
    story.tell(
        "metric postpone_table_turned_away_total{table=\"proven\"} = 200
         metric postpone_table_evicted_total{table=\"proven\"} = 0",
    );
    story.each(0..1_000, "+6m 2001:db8:{n}::7 MAIL a@example.com; RCPT new@example.net => pass");
    story.tell(
        "+6m 2001:db8:3e8::7 MAIL a@example.com
         +6m 2001:db8:3e8::7 RCPT new@example.net => defer greylist wait=5m code=451",
    );
    story.play("all are proven");
}

#[test]
fn a_flood_of_offenders_takes_no_penalty_from_who_has_earned_a_longer_one() {
    let mut story = Story::with(
        "[[limit]]
         name = \"minute\"
         count = \"messages\"
         quota = \"1/1m\"
         penalty = { factor = 2, cap = \"1h\", decay = \"1h\" }
         [greylist]
         mode = \"off\"
         [state]
         max_clients = 1000",
    );
    story.tell(
        "+0s 192.0.2.7 CONNECT; MAIL a@example.net; DATA; END
         +0s 192.0.2.7 MAIL a@example.net => close rate minute wait=1m
         +1m 192.0.2.7 MAIL a@example.net; DATA; END
         +1m 192.0.2.7 MAIL a@example.net => close rate minute wait=2m
         +3m 192.0.2.7 MAIL a@example.net; DATA; END
         +3m 192.0.2.7 MAIL a@example.net => close rate minute wait=4m",
    );
    story.each(
        0..3_000,
        "+4m 2001:db8:{n}::7 CONNECT; MAIL a@example.net; DATA; END
         +4m 2001:db8:{n}::7 MAIL a@example.net => close rate minute wait=1m
         +4m 2001:db8:{n}::7 QUIT",
    );
    story.tell(
        "metric postpone_table_entries{table=\"penalties\"} = 1000
         +5m 192.0.2.7 MAIL a@example.net => close rate minute wait=2m
         +7m 192.0.2.7 MAIL a@example.net; DATA; END
         +7m 192.0.2.7 MAIL a@example.net => close rate minute wait=8m",
    );
    story.play("offenders");
}

/// Gauges are pushed out by nobody: whoever finds no room is not counted.
#[test]
fn open_sessions_keep_their_gauge_while_ever_new_ones_come() {
    let mut story = Story::with(
        "[[limit]]\nname = \"at-once\"\ncount = \"sessions\"\nmax = 1\n[greylist]\nmode = \"off\"\n\
         [state]\nmax_clients = 1000",
    );
    story.tell("+0s 192.0.2.7#1 CONNECT; HELO mx.example.net");
    story.each(0..1_500, "+1s 2001:db8:{n}::7 CONNECT; HELO x");
    story.tell(
        "metric postpone_table_entries{table=\"gauges\"} = 1000
         metric postpone_table_turned_away_total{table=\"gauges\"} = 501
         +2s 192.0.2.7#2 CONNECT
         +2s 192.0.2.7#2 HELO mx.example.net => close sessions at-once wait=1m",
    );
    // When others go, their places are there for whoever comes.
    story.each(0..1_500, "+3s 2001:db8:{n}::7 QUIT");
    story.tell(
        "+3s 192.0.2.8#1 CONNECT; HELO mx.example.net
         +3s 192.0.2.8#2 CONNECT
         +3s 192.0.2.8#2 HELO mx.example.net => close sessions at-once wait=1m
         metric postpone_table_turned_away_total{table=\"gauges\"} = 501",
    );
    story.play("open sessions");
}

const TEN_PENDING: &str = "limit = []
[server]
most_refusals = 1000
[greylist]
mode = \"enforce\"
window = \"1h\"
max_pending_per_network = 10
[state]
max_triplets = 1000";

#[test]
fn who_comes_back_passes_through_a_flood_of_first_contacts() {
    let mut story = Story::with(TEN_PENDING);
    let refused = "=> defer greylist wait=5m code=451";
    let first = format!("CONNECT; HELO x; MAIL a{{n}}@example.com; RCPT b@example.org {refused}");
    story.each(0x1000..0x1000 + 200, &format!("+0s 2001:db8:{{n}}::7 {first}"));
    story.tell(&format!(
        "+1m 192.0.2.7 CONNECT mx.example.net; HELO mx.example.net; MAIL a@example.net
         +1m 192.0.2.7 RCPT b@example.org {refused}"
    ));
    story.each(0x2000..0x2000 + 250, &format!("+2m 2001:db8:{{n}}::7 {first}"));
    story.tell(
        "metric postpone_table_entries{table=\"pending\"} = 451
         +6m 192.0.2.7 RCPT b@example.org; DATA; END => pass
         metric postpone_greylist_suspended = 0",
    );
    story.play("a flood of first contacts");
}

/// Eight times what one of its networks may have; beyond it the answer is the same.
#[test]
fn first_contacts_from_one_48_have_a_bound_of_their_own() {
    let mut story = Story::with(TEN_PENDING);
    let refused = "=> defer greylist wait=5m code=451";
    let first = format!("CONNECT; HELO x; MAIL a{{n}}@example.com; RCPT b@example.org {refused}");
    story.each(0..300, &format!("+0s 2001:db8:1:{{n}}::7 {first}"));
    story.tell(
        "metric postpone_table_entries{table=\"pending\"} = 80
         # The networks that had no room take none elsewhere.
         metric postpone_table_entries{table=\"crowds\"} = 81",
    );
    // A single network has its own bound, and takes no more from its neighbours.
    story.tell("+0s 2001:db8:2:1::7 CONNECT; HELO x");
    story.each(
        0..100,
        &format!("+0s 2001:db8:2:1::7 MAIL b{{n}}@example.com; RCPT b@example.org {refused}"),
    );
    story.tell("metric postpone_table_entries{table=\"pending\"} = 90");
    story.each(1..8, &format!("+0s 2001:db8:2:{{n}}00::7 {first}"));
    story.tell(
        "metric postpone_table_entries{table=\"pending\"} = 97
         # A pass makes room for another one of the /48: one, and no more.
         +5m 2001:db8:1:0::7 RCPT b@example.org; DATA; END => pass",
    );
    let again = "MAIL c{n}@example.com; RCPT b@example.org => defer greylist wait=5m code=451";
    story.each(100..103, &format!("+5m 2001:db8:1:{{n}}::7 {again}"));
    story.tell("metric postpone_table_entries{table=\"pending\"} = 97").play("pending of one /48");
}

/// Else greylisting would be suspended for as long as the clock has stepped back.
#[test]
fn a_clock_that_steps_back_does_not_suspend_greylisting() {
    let settings = "limit = []\n[greylist]\nmode = \"enforce\"\n[state]\nmax_triplets = 1000\n";
    let (engine, clock, _) = engine("a step back", settings);
    let client = Client::new([192, 0, 2, 7].into());
    let mut session = engine.session(client, listen::Params::default().door());
    let sender = Address::new(b"a@example.net");
    session.on(Event::Mail { sender, size: None, user: None, tls: false });
    let mut asks = |name: String| {
        let address = Address::new(format!("{name}@example.org").as_bytes());
        session.on(Event::Recipient { address, fate: Fate::Offered })
    };
    (0..501).for_each(|n| assert_ne!(asks(format!("user{n}")), Answer::Pass));
    assert_eq!(asks("one-more".into()), Answer::Pass, "the last one was pushed out at once");
    clock.set(START);
    clock.advance(Duration::from_secs(60));
    assert_eq!(asks("two-more".into()), Answer::Pass);
    clock.set(postpone::clock::Time::from_nanos(START.as_nanos() - 86_400_000_000_000));
    assert_ne!(asks("three-more".into()), Answer::Pass);
}
