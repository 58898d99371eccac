//! Timelines that an administrator can read, one file each in `tests/scenarios`, and laws that need
//! more than a timeline. How a file is written says `tests/scenarios/play.rs`.

#[path = "scenarios/play.rs"]
mod play;

use std::collections::HashSet;
use std::fmt::Write;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use postpone::engine::{Answer, Session};
use postpone::front::listen;
use postpone::smtp::address::{Address, ClientText};
use postpone::smtp::client::Client;
use postpone::smtp::event::{Event, Fate};

use play::{engine, play};

macro_rules! scenarios {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                let file = concat!("tests/scenarios/", stringify!($name), ".txt");
                play(file, include_str!(concat!("scenarios/", stringify!($name), ".txt")));
            }
        )*

        const PLAYED: &[&str] = &[$(stringify!($name)),*];
    };
}

scenarios! {
    access
    access_require
    behaviour
    behaviour_abnormal
    behaviour_established
    behaviour_extreme
    behaviour_learning
    behaviour_shadow
    behaviour_weight
    bypass
    bytes
    charge_attempts
    charge_attempts_domain
    charge_attempts_end
    composite_keys
    connect
    connections
    distinct_helos
    distinct_recipients
    distinct_senders
    domain_messages
    exempt_recipients
    greylist
    greylist_and_limits
    greylist_becomes_shadow
    greylist_crowd
    greylist_crowd_hammered
    greylist_data
    greylist_data_surplus
    greylist_imported
    greylist_pool
    greylist_proven
    greylist_senders
    greylist_when
    greylist_when_domain
    greylist_window
    host
    host_sessions
    keys
    load
    maintenance
    messages
    names
    networks
    patience_access
    patience_behaviour
    patience_exempt
    patience_greylist
    patience_limits
    patience_sessions
    penalty
    penalty_connections
    pool
    rate
    recipients
    recipients_given_back
    reload
    sessions
    several
    several_at_connect
    several_windows
    shadow_by_hand
    shadow_forgiven
    shadow_greylist
    shadow_greylist_data
    shadow_limit
    shadow_sessions
    spellings
    submission
    submission_host
    told
    translated
    unknown_recipients
    unknown_recipients_domain
    unknown_recipients_flood
    when_message
    when_name
    when_origin
    when_standing
    whole_host
    wider_network
}

#[test]
fn every_scenario_is_played() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scenarios");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap();
        let text = path.extension().is_some_and(|extension| extension == "txt");
        assert!(!text || PLAYED.contains(&name), "{} is not in the list", path.display());
    }
}

#[test]
#[should_panic(expected = "wrong.txt:3: +0s 192.0.2.7 CONNECT => close access wait=1s\n\
                           expected close access wait=1s, not pass")]
fn what_does_not_hold_is_told_with_its_line() {
    play("wrong.txt", "limit = []\n---\n+0s 192.0.2.7 CONNECT => close access wait=1s\n");
}

/// Half of `max_triplets` is for those that wait. When it is full, the oldest make room; and if
/// they had no time to come back, first contacts pass, since their retries could never succeed.
#[test]
fn first_contacts_pass_while_others_are_pushed_out_before_they_can_come_back() {
    let mut story = String::from(
        "limit = []\n[server]\nmost_refusals = 1000\n[greylist]\nmode = \"enforce\"\n\
         [state]\nmax_triplets = 1000\n---\n\
         +0s 192.0.2.7 CONNECT; HELO mx.example.net; MAIL a@example.net\n",
    );
    for number in 0..500 {
        let refused = "defer greylist wait=5m code=451";
        writeln!(story, "+0s 192.0.2.7 RCPT user{number}@example.org => {refused}").unwrap();
    }
    story += "+0s 192.0.2.7 RCPT one-more@example.org => defer greylist wait=5m code=451
        metric postpone_table_entries{table=\"pending\"} = 500
        metric postpone_table_evicted_total{table=\"pending\"} = 1
        metric postpone_greylist_suspended = 1
        +1s 192.0.2.7 RCPT two-more@example.org => pass
        +9m50s 192.0.2.7 RCPT three-more@example.org => pass
        metric postpone_greylist_suspended = 1
        +10m 192.0.2.7 RCPT four-more@example.org => defer greylist wait=5m code=451
        metric postpone_greylist_suspended = 0
        metric postpone_table_evicted_total{table=\"pending\"} = 2\n";
    play("a full table", &story);
}

fn mail(sender: &str) -> Event {
    Event::Mail { sender: Address::new(sender.as_bytes()), size: None, user: None, tls: false }
}

/// The law of `policy/mod.rs`: assessing only reads, so threads that ask at the same moment may pass
/// together; by at most as many events as there are threads, less one.
#[test]
fn threads_that_hammer_one_limit_overrun_it_by_at_most_all_of_them_but_one() {
    const THREADS: usize = 2;
    const BURST: usize = 50;
    let limit = format!(
        "[[limit]]\nname = \"x\"\ncount = \"messages\"\nquota = \"1/1h burst {BURST}\"\n\
         [greylist]\nmode = \"off\"\n"
    );
    for round in 0..50 {
        let (engine, ..) = engine("two threads", &limit);
        let together = Barrier::new(THREADS);
        let hammer = || {
            let mut session = engine
                .session(Client::new([192, 0, 2, 7].into()), listen::Params::default().door());
            together.wait();
            let attempts = (0..BURST).map(|_| {
                let passed = session.on(mail("a@example.net")) == Answer::Pass;
                // Complete, or the next MAIL would give it back.
                session.on(Event::EndOfMessage { size: None });
                passed
            });
            attempts.filter(|passed| *passed).count()
        };
        let passed: usize = thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(hammer)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!((BURST..BURST + THREADS).contains(&passed), "round {round}: {passed} of {BURST}");
    }
}

/// The same law for the pace of a client whose sending is out of the ordinary: what one session has
/// taken of it, another that was judged at the same moment does not put back.
#[test]
fn threads_that_keep_one_pace_overrun_it_by_at_most_all_of_them_but_one() {
    const THREADS: usize = 2;
    // A bucket holds ten at first; the clock stands still.
    const FIRST: usize = 10;
    let settings = "limit = []\n[greylist]\nmode = \"off\"\n[behaviour]\nlearn_for = \"0s\"\n\
                    suspect = 0.1\nabnormal = 50.0\nextreme = 60.0\nslow = \"60/1m\"\n";
    for round in 0..300 {
        let (engine, ..) = engine("one pace", settings);
        let together = Barrier::new(THREADS);
        let hammer = || {
            let mut session = engine
                .session(Client::new([192, 0, 2, 7].into()), listen::Params::default().door());
            session.on(Event::Connect);
            session.on(Event::Helo { name: ClientText::new(b"[192.0.2.7]") });
            together.wait();
            let attempts = (0..4 * FIRST).map(|_| {
                session.on(mail("a@example.net"));
                let address = Address::new(b"b@example.org");
                let recipient = Event::Recipient { address, fate: Fate::Offered };
                let passed = session.on(recipient) == Answer::Pass;
                session.on(Event::EndOfMessage { size: None });
                passed
            });
            attempts.filter(|passed| *passed).count()
        };
        let passed: usize = thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(hammer)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!((FIRST..FIRST + THREADS).contains(&passed), "round {round}: {passed} of {FIRST}");
    }
}

/// One message in so long a time, and the reply is nothing but the wait.
fn one_in(period: &str) -> String {
    format!(
        "[[limit]]\nname = \"x\"\ncount = \"messages\"\nquota = \"1/{period}\"\n\
         reply = \"421 4.7.0 {{wait}}\"\n[greylist]\nmode = \"off\"\n"
    )
}

/// What a session is told, and the true wait.
fn refused(session: &mut Session) -> (Duration, Duration) {
    let Answer::Refuse(refused) = session.on(mail("a@example.net")) else { panic!("let in") };
    (Duration::from_secs(refused.reply.text().parse().expect("a number")), refused.wait)
}

/// A client that takes us at our word is let in. The clock stands between two milliseconds, as the
/// system's nearly always does.
#[test]
fn the_wait_in_the_text_is_never_shorter_than_the_true_one() {
    let (engine, clock, _) = engine("the wait told", &one_in("3s"));
    let mut session =
        engine.session(Client::new([192, 0, 2, 7].into()), listen::Params::default().door());
    for _ in 0..50 {
        clock.advance(Duration::from_secs(3));
        assert_eq!(session.on(mail("a@example.net")), Answer::Pass);
        session.on(Event::EndOfMessage { size: None });
        clock.advance(Duration::from_micros(999_600));
        let (told, wait) = refused(&mut session);
        assert!(told >= wait, "told to wait {told:?}, and it takes {wait:?}");
    }
}

/// A wait may be told up to a quarter longer, so that a flood does not come back as one.
#[test]
fn those_who_are_deferred_in_the_same_moment_are_told_to_return_at_different_ones() {
    for period in ["1m", "64s", "5m"] {
        let (engine, ..) = engine("the jitter", &one_in(period));
        let mut session =
            engine.session(Client::new([192, 0, 2, 7].into()), listen::Params::default().door());
        assert_eq!(session.on(mail("a@example.net")), Answer::Pass);
        session.on(Event::EndOfMessage { size: None });
        let told: HashSet<_> = (0..100).map(|_| refused(&mut session).0).collect();
        assert!(told.len() > 10, "for {period}, 100 clients are told {told:?}");
    }
}
