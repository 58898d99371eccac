use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::desk::{MOST_ANSWERS, MOST_QUESTIONS};
use super::request::Stage;
use super::*;
use crate::clock::{ManualClock, Time};
use crate::config::{Settings, Unusable};
use crate::engine::Session;
use crate::meter::key::Secret;
use crate::policy::Memory;
use crate::smtp::address::{Address, ClientText};
use crate::smtp::client::Client;
use crate::smtp::event::{Event, Fate};
use crate::smtp::reply::{Code, Enhanced, Reply};

/// As Postfix 3.7.11 asks, every attribute in its order.
const PLAIN: [(&str, &str); 29] = [
    ("request", "smtpd_access_policy"),
    ("protocol_state", "RCPT"),
    ("protocol_name", "ESMTP"),
    ("client_address", "192.0.2.7"),
    ("client_name", "unknown"),
    ("client_port", "60395"),
    ("reverse_client_name", "unknown"),
    ("server_address", "192.0.2.1"),
    ("server_port", "25"),
    ("helo_name", "mx.example.net"),
    ("sender", "a@example.net"),
    ("recipient", "one@example.org"),
    ("recipient_count", "0"),
    ("queue_id", ""),
    ("instance", "2f0f.6b01f63d.a9b17.0"),
    ("size", "0"),
    ("etrn_domain", ""),
    ("stress", ""),
    ("sasl_method", ""),
    ("sasl_username", ""),
    ("sasl_sender", ""),
    ("ccert_subject", ""),
    ("ccert_issuer", ""),
    ("ccert_fingerprint", ""),
    ("ccert_pubkey_fingerprint", ""),
    ("encryption_protocol", ""),
    ("encryption_cipher", ""),
    ("encryption_keysize", "0"),
    ("policy_context", ""),
];

/// The same with these values in it. Before MAIL, and before RCPT, Postfix knows less.
fn request(changes: &[(&str, &str)]) -> String {
    let change = |name: &str| changes.iter().find(|(changed, _)| *changed == name);
    let state = change("protocol_state").map_or("RCPT", |(_, state)| state);
    let unknown = |name: &str| match name {
        "helo_name" => state == "CONNECT",
        "sender" => matches!(state, "CONNECT" | "HELO" | "EHLO"),
        "recipient" | "instance" => matches!(state, "CONNECT" | "HELO" | "EHLO" | "MAIL"),
        _ => false,
    };
    let value = |(name, plain): (&str, &'static str)| match change(name) {
        Some((_, value)) => (*value).to_owned(),
        None if unknown(name) => String::new(),
        None => plain.to_owned(),
    };
    PLAIN.iter().map(|(name, plain)| format!("{name}={}\n", value((name, plain)))).collect()
}

/// A desk, and what stands behind it.
struct Office {
    clock: Arc<ManualClock>,
    engine: Arc<Engine>,
    doors: Vec<Door>,
    desk: Desk,
}

impl Office {
    /// With these settings, which begin with the limits. There is a milter, and a policy service.
    fn new(limits: &str) -> Self {
        let text = format!(
            "{limits}\n[access]\nallow = []\n[[listen]]\nmilter = \"inet:127.0.0.1:1\"\n\
             [[listen]]\npolicy = \"inet:127.0.0.1:2\"\n"
        );
        let text = match text.contains("[greylist]") {
            true => text,
            false => text + "[greylist]\nmode = \"off\"\n",
        };
        let checked = Settings::parse("test", &text);
        let settings = checked.unwrap_or_else(|Unusable(report)| panic!("{report}")).settings;
        let secret = Secret::new([7; 16]);
        let memory = Memory::new(&secret, settings.bounds());
        let Ok(policy) = settings.policy(&memory) else { panic!("{text}") };
        let clock = Arc::new(ManualClock::at(Time::from_secs(1_800_000_000)));
        let engine = Engine::new(Box::new(clock.clone()), memory, policy);
        let doors = settings.listen.iter().map(|listen| listen.door()).collect();
        engine.will_be_asked();
        Self { clock, engine, doors, desk: Desk::new(&secret) }
    }

    fn ask(&self, changes: &[(&str, &str)]) -> String {
        let text = request(changes);
        let request = Request::parse(text.as_bytes()).unwrap();
        self.desk.answer(&request, &self.engine, &self.doors[1]).to_string()
    }

    /// A message: its recipients are asked about, and the first refusal of one is the answer.
    fn message(&self, instance: &str, recipients: &[&str]) -> String {
        let ask = |to: &&str| self.ask(&[("instance", instance), ("recipient", to)]);
        let answers = recipients.iter().map(ask);
        answers.into_iter().find(|answer| answer != DUNNO).unwrap_or(DUNNO.to_owned())
    }

    /// The same client as a milter sees it.
    fn milter(&self, port: u16) -> Session {
        let mut client = Client::new([192, 0, 2, 7].into());
        client.port = Some(port);
        let mut session = self.engine.session(client, self.doors[0].clone());
        session.on(Event::Connect);
        session.on(Event::Helo { name: ClientText::new(b"mx.example.net") });
        session
    }

    fn wait(&self, secs: u64) {
        self.clock.advance(Duration::from_secs(secs));
    }
}

const DUNNO: &str = "DUNNO";

fn limit(count: &str, per: &str, rest: &str) -> String {
    format!("[[limit]]\nname = \"x\"\ncount = \"{count}\"\nper = {per}\n{rest}\n")
}

fn per_network(count: &str, quota: &str) -> String {
    limit(count, "[\"network\"]", &format!("quota = \"{quota}\""))
}

/// How much of it the client may still do now, found by trying in sessions of their own.
fn left(office: &Office, first_port: u16) -> usize {
    let attempt = |port: &u16| {
        let (port, instance) = (port.to_string(), format!("left.{port}"));
        office.ask(&[("client_port", &port), ("instance", &instance)]) == DUNNO
    };
    (first_port..first_port + 50).take_while(attempt).count()
}

fn mail(size: u64) -> Event {
    let sender = Address::new(b"<a@example.net>");
    Event::Mail { sender, size: Some(size), user: None, tls: false }
}

fn rcpt(to: &str) -> Event {
    Event::Recipient { address: Address::new(to.as_bytes()), fate: Fate::Offered }
}

mod requests {
    use super::*;

    #[test]
    fn all_that_postfix_tells_is_read() {
        let text = request(&[
            ("client_address", "2001:db8::7"),
            ("client_name", "MX.example.net"),
            ("size", "100"),
            ("recipient_count", "3"),
            ("sasl_username", "alice"),
            ("encryption_protocol", "TLSv1.3"),
            ("stress", "yes"),
            ("policy_context", "submission"),
        ]);
        let request = Request::parse(text.as_bytes()).unwrap();
        assert_eq!(request.stage, Stage::Recipient);
        assert_eq!(request.client.address().to_string(), "2001:db8::7");
        assert_eq!(request.client.name(), Some("mx.example.net"));
        assert_eq!(request.client.port, Some(60_395));
        assert_eq!(request.client.user.as_ref().map(|user| user.as_str()), Some("alice"));
        assert!(request.client.tls);
        assert_eq!(request.helo, b"mx.example.net");
        assert_eq!((request.size, request.recipient_count), (Some(100), 3));
        assert_eq!(
            (request.instance, request.context),
            (&b"2f0f.6b01f63d.a9b17.0"[..], &b"submission"[..])
        );
        let Event::Mail { sender, .. } = request.mail() else { panic!() };
        assert_eq!(sender.as_str(), "a@example.net");
    }

    #[test]
    fn what_a_version_does_not_tell_is_missing_and_what_a_newer_one_does_is_skipped() {
        let text = "request=smtpd_access_policy\nprotocol_state=MAIL\nclient_address=192.0.2.7\n";
        let request = Request::parse(text.as_bytes()).unwrap();
        assert_eq!((request.stage, request.client.port, request.size), (Stage::Mail, None, None));
        assert!(!request.client.authenticated() && !request.client.tls);
        let newer = format!("{text}mail_version=4.0\nnothing=\n=\n\n");
        assert_eq!(Request::parse(newer.as_bytes()).unwrap().stage, Stage::Mail);
        let torn = text.replace('\n', "\r\n");
        assert_eq!(Request::parse(torn.as_bytes()).unwrap().stage, Stage::Mail);
    }

    #[test]
    fn a_value_may_hold_anything_but_a_line_end() {
        let text = request(&[("sender", "a=b=c \u{e9}\u{1}@example.net")]);
        let Event::Mail { sender, .. } = Request::parse(text.as_bytes()).unwrap().mail() else {
            panic!()
        };
        assert_eq!(sender.as_str(), "\"a=b=c \u{e9}\u{1}\"@example.net");
    }

    #[test]
    fn what_is_no_request_is_named() {
        let parse = |text: &str| Request::parse(text.as_bytes()).map(|request| request.stage);
        assert_eq!(parse(""), Err(Garbage::NoRequest));
        assert_eq!(parse("request=another\n"), Err(Garbage::NoRequest));
        assert_eq!(parse("GET / HTTP/1.1\n"), Err(Garbage::NoAttribute));
        assert_eq!(parse(&request(&[("client_address", "unknown")])), Err(Garbage::UnknownClient));
        for address in ["", "192.0.2.300", "mx.example.net"] {
            let text = request(&[("client_address", address)]);
            assert_eq!(parse(&text), Err(Garbage::NoClient), "{address}");
        }
    }

    #[test]
    fn a_port_of_zero_is_none() {
        for port in ["0", "", "unknown", "65536"] {
            let text = request(&[("client_port", port)]);
            assert_eq!(Request::parse(text.as_bytes()).unwrap().client.port, None, "{port}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(?s).{0,300}") {
            let _ = Request::parse(text.as_bytes());
            let _ = Request::parse(format!("request=smtpd_access_policy\n{text}").as_bytes());
        }

        /// A bare number means OK to Postfix, and a second line is another attribute.
        #[test]
        fn an_action_is_one_line_and_no_bare_number(code in 0..4_usize, text in "(?s).{0,900}") {
            let code = [Code::Code421, Code::Code450, Code::Code451, Code::Code452][code];
            let enhanced = Enhanced::parse("4.7.0").unwrap();
            let action = Action::Refuse(Reply::new(code, enhanced, &text)).to_string();
            prop_assert!(action.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{}", action);
            let (verb, rest) = action.split_once(' ').unwrap();
            let expected = if code == Code::Code450 { "DEFER_IF_PERMIT" } else { code.digits() };
            prop_assert_eq!(verb, expected);
            // Without a text, which Postfix then makes up, the codes still hold.
            prop_assert!(rest.starts_with("4.7.0 "), "{}", action);
        }
    }
}

mod repeats {
    use super::*;

    #[test]
    fn the_same_request_counts_once_and_gets_the_same_answer() {
        let office = Office::new(&per_network("messages", "2/1h"));
        for _ in 0..5 {
            assert_eq!(office.message("a", &["one@example.org"]), DUNNO);
        }
        assert_eq!(left(&office, 1), 1);
        let refusal = office.message("b", &["one@example.org"]);
        assert!(refusal.starts_with("421 4.7.0 "), "{refusal}");
        office.wait(60);
        assert_eq!(office.message("b", &["one@example.org"]), refusal);
    }

    #[test]
    fn whatever_makes_it_another_request_counts_again() {
        // Attempts count whatever becomes of them, so what is left tells how many there were.
        for (name, value, counted) in [
            ("client_address", "192.0.2.8", 1),
            ("client_port", "1", 2),
            ("instance", "b", 2),
            ("sender", "b@example.net", 2),
            ("recipient", "two@example.org", 2),
            // These do not.
            ("policy_context", "x", 1),
            ("stress", "yes", 1),
            ("size", "7", 1),
            ("encryption_protocol", "TLSv1.3", 1),
            ("client_name", "mx.example.net", 1),
            ("reverse_client_name", "mx.example.net", 1),
        ] {
            let office = Office::new(&per_network("recipients", "9/1h"));
            office.ask(&[]);
            office.ask(&[(name, value)]);
            office.ask(&[(name, value)]);
            assert_eq!(left(&office, 100), 9 - counted, "{name}");
        }
    }

    #[test]
    fn after_five_minutes_it_is_another() {
        let office = Office::new(&per_network("recipients", "9/1h"));
        let ask = || office.ask(&[]);
        ask();
        office.wait(299);
        ask();
        office.wait(1); // five minutes since it was answered, however often it was asked
        ask();
        assert_eq!(left(&office, 100), 7);
    }

    #[test]
    fn who_has_waited_as_told_is_heard() {
        let office = Office::new(&per_network("recipients", "1/1m"));
        assert_eq!(office.message("a", &["one@example.org"]), DUNNO);
        let second = || office.message("a", &["two@example.org"]);
        let refusal = second();
        assert!(refusal.starts_with("452 4.5.3 "), "{refusal}");
        office.wait(59);
        assert_eq!(second(), refusal);
        office.wait(1);
        assert_eq!(second(), DUNNO);
    }

    #[test]
    fn memory_has_its_bounds_and_what_has_faded_goes() {
        let office = Office::new("limit = []");
        let ask = |n: usize| {
            let (port, instance) = ((n % 60_000 + 1).to_string(), format!("{n}"));
            office.ask(&[("client_port", &port), ("instance", &instance)]);
        };
        (0..70_000).for_each(ask);
        let [(_, answers), (_, asked)] = office.desk.sizes();
        assert!(answers <= MOST_ANSWERS && asked <= MOST_QUESTIONS, "{answers} {asked}");
        assert!(answers > MOST_ANSWERS - 100 && asked > MOST_QUESTIONS - 100, "{answers} {asked}");
        office.wait(1_800);
        // Never all at once: other requests wait for it.
        (0..10).for_each(ask);
        let [(_, answers), (_, asked)] = office.desk.sizes();
        assert!(answers > MOST_ANSWERS - 1_000 && asked > MOST_QUESTIONS - 1_000);
        (0..5_000).for_each(ask);
        let [(_, answers), (_, asked)] = office.desk.sizes();
        assert_eq!((answers, asked), (5_000, 2 * 5_000));
    }

    #[test]
    fn one_message_with_very_many_recipients_pushes_out_others_but_not_the_bound() {
        let office = Office::new(&per_network("connections", "9/1h"));
        office.ask(&[("client_port", "1")]);
        for n in 0..70_000 {
            office.ask(&[("client_port", "2"), ("recipient", &format!("{n}@example.org"))]);
        }
        assert!(office.desk.sizes().iter().all(|(_, size)| *size <= MOST_ANSWERS));
        // The first client is forgotten, the busy one is begun anew now and then.
        assert!(left(&office, 100) <= 7);
    }
}

mod sessions {
    use super::*;

    #[test]
    fn all_recipients_of_an_instance_are_one_message() {
        let office = Office::new(&per_network("messages", "2/1h"));
        assert_eq!(office.message("a", &["one@example.org", "two@example.org"]), DUNNO);
        office.ask(&[("instance", "a"), ("protocol_state", "DATA"), ("recipient", "")]);
        let end = [("instance", "a"), ("protocol_state", "END-OF-MESSAGE"), ("recipient", "")];
        office.ask(&end);
        office.ask(&end);
        assert_eq!(office.message("b", &["one@example.org"]), DUNNO);
        assert!(office.message("c", &["one@example.org"]).starts_with("421 4.7.0 "));
    }

    #[test]
    fn a_message_has_no_name_before_its_first_recipient() {
        let office = Office::new(&per_network("messages", "2/1h"));
        for _ in 0..2 {
            assert_eq!(office.ask(&[("protocol_state", "MAIL")]), DUNNO);
        }
        assert_eq!(office.message("a", &["one@example.org", "two@example.org"]), DUNNO);
        // The next one of the same sender looks at MAIL like a repeat, and is known at RCPT.
        assert_eq!(office.ask(&[("protocol_state", "MAIL")]), DUNNO);
        assert_eq!(office.message("b", &["one@example.org"]), DUNNO);
        assert_eq!(office.ask(&[("protocol_state", "MAIL")]), DUNNO);
        assert!(office.message("c", &["one@example.org"]).starts_with("421 4.7.0 "));
    }

    #[test]
    fn a_session_asked_about_at_every_stage_counts_everything_once() {
        for (count, quota) in
            [("connections", "1/1h"), ("messages", "1/1h"), ("recipients", "1/1h")]
        {
            let office = Office::new(&per_network(count, quota));
            for state in ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "END-OF-MESSAGE"] {
                for _ in 0..2 {
                    let count = if state < "R" { "1" } else { "0" };
                    let changes = [("protocol_state", state), ("recipient_count", count)];
                    assert_eq!(office.ask(&changes), DUNNO, "{count} at {state}");
                }
            }
            assert_eq!(left(&office, 100), 0);
        }
    }

    #[test]
    fn a_command_without_a_rule_is_not_counted() {
        let office = Office::new(&per_network("connections", "1/1h"));
        for state in ["VRFY", "ETRN", "", "XYZZY"] {
            assert_eq!(office.ask(&[("protocol_state", state)]), DUNNO);
        }
        assert_eq!(left(&office, 1), 1);
    }

    #[test]
    fn a_message_is_never_given_back_for_want_of_an_end() {
        let office = Office::new(&per_network("messages", "2/1h"));
        for instance in ["a", "b"] {
            assert_eq!(office.message(instance, &["one@example.org"]), DUNNO);
        }
        office.wait(1_700); // its session is forgotten half an hour after
        assert_eq!(left(&office, 1), 0);
        office.wait(99);
        assert_eq!(left(&office, 100), 0);
    }

    #[test]
    fn the_true_size_is_owed_against_the_next_message() {
        let office = Office::new(&per_network("bytes", "1MiB/1h"));
        let message = |instance: &str, told: &str, real: &str| {
            let rcpt = office.ask(&[("instance", instance), ("size", told)]);
            let end =
                [("instance", instance), ("size", real), ("protocol_state", "END-OF-MESSAGE")];
            (rcpt, office.ask(&end))
        };
        let passes = || (DUNNO.to_owned(), DUNNO.to_owned());
        // It declares little and sends more, half of the quota twice, and then a lot.
        assert_eq!(message("a", "10", "524288"), passes());
        assert_eq!(message("b", "10", "524288"), passes());
        let refusal = message("c", "10", "1").0;
        assert!(refusal.starts_with("421 4.7.0 "), "{refusal}");
        office.wait(3_600);
        // Declared too much: what did not come is not owed.
        assert_eq!(message("d", "1000000", "10"), passes());
        assert_eq!(message("e", "1000000", "10"), passes());
    }

    #[test]
    fn asked_only_at_the_end_a_message_counts_with_its_true_size() {
        let office = Office::new(&per_network("bytes", "1MiB/1h"));
        let end = |instance: &str| {
            office.ask(&[
                ("instance", instance),
                ("protocol_state", "END-OF-MESSAGE"),
                ("size", "524288"),
                ("recipient_count", "1"),
            ])
        };
        assert_eq!((end("a"), end("a"), end("b")), (DUNNO.into(), DUNNO.into(), DUNNO.into()));
        let refusal = end("c");
        assert!(refusal.starts_with("421 4.7.0 "), "{refusal}");
    }

    #[test]
    fn recipients_that_were_not_asked_about_count_at_data() {
        let office = Office::new(&per_network("recipients", "9/1h"));
        let data = |instance: &str, state: &str, count: &str| {
            let changes = [("instance", instance), ("protocol_state", state)];
            office.ask(&[changes[0], changes[1], ("recipient", ""), ("recipient_count", count)])
        };
        // Of five recipients one was asked about: four are new, at DATA and not again at the end.
        assert_eq!(office.message("a", &["one@example.org"]), DUNNO);
        assert_eq!(data("a", "DATA", "5"), DUNNO);
        assert_eq!(data("a", "END-OF-MESSAGE", "5"), DUNNO);
        assert_eq!(left(&office, 100), 4);
        office.wait(3_600);
        assert_eq!(data("b", "END-OF-MESSAGE", "7"), DUNNO);
        assert_eq!(left(&office, 200), 2);
        office.wait(3_600);
        // More than ever pass at once can be sent all the same, and are owed.
        assert_eq!(data("c", "DATA", "12"), DUNNO);
        assert_eq!(left(&office, 300), 0);
    }

    #[test]
    fn a_message_that_takes_long_is_the_same_at_its_end() {
        let office = Office::new(
            &(per_network("messages", "2/1d") + &limit_named("y", "connections", "2/1d")),
        );
        assert_eq!(office.message("a", &["one@example.org"]), DUNNO);
        office.wait(20 * 60);
        office.ask(&[("instance", "a"), ("protocol_state", "END-OF-MESSAGE")]);
        assert_eq!(left(&office, 100), 1);
    }

    #[test]
    fn after_a_421_the_same_port_is_another_session() {
        let office = Office::new(&per_network("connections", "1/1m"));
        assert_eq!(office.ask(&[("client_port", "1")]), DUNNO);
        let refused = || office.ask(&[("client_port", "2"), ("instance", "b")]);
        assert!(refused().starts_with("421 "));
        office.wait(60);
        assert_eq!(refused(), DUNNO);
        assert_eq!(office.ask(&[("client_port", "2"), ("instance", "c")]), DUNNO);
        assert!(office.ask(&[("client_port", "3")]).starts_with("421 "));
    }

    #[test]
    fn sessions_at_once_are_nothing_that_the_policy_service_counts() {
        let office = Office::new(&limit("sessions", "[\"network\"]", "max = 1"));
        assert_eq!(left(&office, 1), 50);
        assert!(office.engine.metrics().contains("postpone_sessions_open 0"));
    }

    #[test]
    fn who_has_authenticated_is_exempt_from_the_first_request_on() {
        let office = Office::new(&per_network("connections", "1/1h"));
        let alice = |port: &str| office.ask(&[("client_port", port), ("sasl_username", "alice")]);
        assert_eq!(office.ask(&[("client_port", "1")]), DUNNO);
        assert_eq!((alice("2"), alice("3")), (DUNNO.into(), DUNNO.into()));
        assert!(office.ask(&[("client_port", "4")]).starts_with("421 "));
    }

    #[test]
    fn a_policy_context_is_the_listener_that_rules_know() {
        let office = Office::new(&limit(
            "messages",
            "[\"network\", \"listener\"]",
            "quota = \"1/1h\"\nwhen = { listener = [\"mx\"] }",
        ));
        let ask = |port: &str, context: &str| {
            office.ask(&[("client_port", port), ("policy_context", context)])
        };
        assert_eq!((ask("1", "mx"), ask("2", "submission")), (DUNNO.into(), DUNNO.into()));
        assert_eq!((ask("3", ""), ask("4", "submission")), (DUNNO.into(), DUNNO.into()));
        assert!(ask("5", "mx").starts_with("421 "));
    }

    fn limit_named(name: &str, count: &str, quota: &str) -> String {
        per_network(count, quota).replace("\"x\"", &format!("\"{name}\""))
    }
}

mod replies {
    use super::*;

    #[test]
    fn codes_as_postfix_takes_them() {
        for (reply, expected) in [
            ("421 4.7.0 {hostname} Go", "421 4.7.0 "),
            ("451 4.7.1 {hostname} Wait", "451 4.7.1 "),
            ("452 4.5.3 {hostname} Fewer", "452 4.5.3 "),
            ("450 4.2.1 {hostname} Later", "DEFER_IF_PERMIT 4.2.1 "),
        ] {
            let rest = format!("quota = \"1/1h\"\nreply = \"{reply}; retry in {{wait}} seconds\"");
            let office = Office::new(&limit("messages", "[\"network\"]", &rest));
            office.message("a", &["one@example.org"]);
            let answer = office.message("b", &["one@example.org"]);
            assert!(answer.starts_with(expected), "{answer}");
        }
    }

    #[test]
    fn a_percent_sign_is_itself() {
        let rest = "quota = \"1/1h\"\nreply = \"421 4.7.0 100% of %s; retry in {wait} seconds\"";
        let office = Office::new(&limit("messages", "[\"network\"]", rest));
        office.message("a", &["one@example.org"]);
        let answer = office.message("b", &["one@example.org"]);
        assert!(answer.starts_with("421 4.7.0 100% of %s; retry in "), "{answer}");
    }

    #[test]
    fn surplus_recipients_are_put_off_one_by_one() {
        let office = Office::new(&per_network("recipients", "2/1h"));
        let to = |to| office.message("a", &[to]);
        assert_eq!((to("one@example.org"), to("two@example.org")), (DUNNO.into(), DUNNO.into()));
        assert!(to("three@example.org").starts_with("452 4.5.3 "));
    }

    #[test]
    fn who_is_refused_at_mail_by_451_is_judged_again_at_the_next_recipient() {
        let rest = "quota = \"1/1m\"\nreply = \"451 4.7.0 Too many; retry in {wait} seconds\"";
        let office = Office::new(&limit("messages", "[\"network\"]", rest));
        assert_eq!(office.message("a", &["one@example.org"]), DUNNO);
        assert!(office.message("b", &["one@example.org"]).starts_with("451 "));
        office.wait(60);
        assert_eq!(office.message("b", &["two@example.org", "one@example.org"]), DUNNO);
        assert!(office.message("c", &["one@example.org"]).starts_with("451 "));
    }
}

mod beside_a_milter {
    use super::*;

    /// Postfix asks the policy service about a recipient first, then the milter.
    fn both(office: &Office, milter: &mut Session, instance: &str, recipients: &[&str]) -> String {
        let said = milter.on(mail(100));
        if let crate::engine::Answer::Refuse(refused) = said {
            return format!("milter {}", refused.reply);
        }
        for to in recipients {
            let answer = office.message(instance, &[to]);
            if answer != DUNNO {
                return answer;
            }
            if let crate::engine::Answer::Refuse(refused) = milter.on(rcpt(to)) {
                return format!("milter {}", refused.reply);
            }
        }
        office.ask(&[("instance", instance), ("protocol_state", "DATA")]);
        milter.on(Event::Data { unseen: 0 });
        let size = [("size", "100"), ("recipient_count", "1")];
        let end = [("instance", instance), ("protocol_state", "END-OF-MESSAGE"), size[0], size[1]];
        office.ask(&end);
        milter.on(Event::EndOfMessage { size: Some(100) });
        DUNNO.to_owned()
    }

    const PORT: u16 = 60_395;

    #[test]
    fn nothing_is_counted_twice() {
        let quotas = [
            ("messages", "[\"network\"]", "2/1h"),
            ("messages", "[\"network\", \"recipient_domain\"]", "2/1h"),
            ("recipients", "[\"network\"]", "2/1h"),
            ("bytes", "[\"network\"]", "200B/1h"),
            ("bytes", "[\"network\", \"recipient\"]", "200B/1h"),
        ];
        for (count, per, quota) in quotas {
            let office = Office::new(&limit(count, per, &format!("quota = \"{quota}\"")));
            let mut milter = office.milter(PORT);
            for instance in ["a", "b"] {
                let said = both(&office, &mut milter, instance, &["one@example.org"]);
                assert_eq!(said, DUNNO, "{count} {per} {instance}");
            }
            let said = both(&office, &mut milter, "c", &["one@example.org"]);
            assert_ne!(said, DUNNO, "{count} {per}");
        }
    }

    #[test]
    fn a_connection_is_not_counted_twice() {
        let office = Office::new(&per_network("connections", "2/1h"));
        let _one = office.milter(PORT);
        assert_eq!(office.ask(&[]), DUNNO);
        let _two = office.milter(1);
        assert_eq!(office.ask(&[("client_port", "1")]), DUNNO);
        assert_eq!(left(&office, 100), 0);
    }

    #[test]
    fn a_second_recipient_of_the_same_domain_is_the_same_message() {
        let per = "[\"network\", \"recipient_domain\"]";
        let office = Office::new(&limit("messages", per, "quota = \"1/1h\""));
        let mut milter = office.milter(PORT);
        let said = both(&office, &mut milter, "a", &["one@example.org", "two@example.org"]);
        assert_eq!(said, DUNNO);
        // The milter says it, which knows what it has charged the message already.
        let said = both(&office, &mut milter, "b", &["one@example.org"]);
        assert!(said.starts_with("milter 451 "), "{said}");
    }

    #[test]
    fn a_first_contact_passes_at_its_second_attempt() {
        let office = Office::new("limit = []\n[greylist]\nmode = \"enforce\"\ndelay = \"5m\"");
        let mut milter = office.milter(PORT);
        let attempt = |milter: &mut Session, instance: &str| {
            both(&office, milter, instance, &["one@example.org"])
        };
        let said = attempt(&mut milter, "a");
        assert!(said.starts_with("451 4.7.1 "), "{said}");
        office.wait(300);
        assert_eq!(attempt(&mut milter, "b"), DUNNO);
        assert_eq!(attempt(&mut milter, "c"), DUNNO);
    }

    #[test]
    fn with_smtpd_delay_reject_off_the_milter_comes_later_and_takes_over() {
        let office = Office::new(&per_network("messages", "2/1h"));
        assert_eq!(office.ask(&[("protocol_state", "CONNECT")]), DUNNO);
        let mut milter = office.milter(PORT);
        assert_eq!(office.ask(&[("protocol_state", "EHLO")]), DUNNO);
        for instance in ["a", "b"] {
            assert_eq!(office.ask(&[("protocol_state", "MAIL")]), DUNNO);
            assert_eq!(both(&office, &mut milter, instance, &["one@example.org"]), DUNNO);
        }
        let said = both(&office, &mut milter, "c", &["one@example.org"]);
        assert!(said.starts_with("milter 421 "), "{said}");
    }

    #[test]
    fn once_the_milter_is_gone_the_policy_service_counts() {
        let office = Office::new(&per_network("messages", "2/1h"));
        let mut milter = office.milter(PORT);
        assert_eq!(both(&office, &mut milter, "a", &["one@example.org"]), DUNNO);
        drop(milter);
        assert_eq!(office.message("b", &["one@example.org"]), DUNNO);
        assert!(office.message("c", &["one@example.org"]).starts_with("421 "));
    }

    #[test]
    fn a_client_that_a_milter_has_counted_elsewhere_is_known() {
        let office = Office::new(&per_network("messages", "2/1h"));
        let mut milter = office.milter(1);
        milter.on(mail(100));
        milter.on(Event::EndOfMessage { size: None });
        assert_eq!(office.message("a", &["one@example.org"]), DUNNO);
        assert!(office.message("b", &["one@example.org"]).starts_with("421 "));
    }
}

mod patience {
    use super::*;

    fn to(office: &Office, local: &str, more: &[(&str, &str)]) -> String {
        let recipient = format!("{local}@example.org");
        office.ask(&[&[("recipient", recipient.as_str())], more].concat())
    }

    fn refuses(office: &Office, locals: std::ops::Range<u32>, code: &str) {
        for local in locals {
            let said = to(office, &local.to_string(), &[]);
            assert!(said.starts_with(code), "{local}: {said}");
        }
    }

    #[test]
    fn beyond_fifteen_refusals_the_surplus_passes_as_a_debt() {
        let office = Office::new(&per_network("recipients", "20/1h"));
        for local in 0..20 {
            assert_eq!(to(&office, &local.to_string(), &[]), DUNNO);
        }
        refuses(&office, 20..35, "452 4.5.3 ");
        for local in 35..60 {
            assert_eq!(to(&office, &local.to_string(), &[]), DUNNO);
        }
        // Five and twenty more are owed, of which the limit remembers as much as a burst.
        office.wait(3_600);
        assert_eq!(left(&office, 100), 0);
        office.wait(180);
        assert_eq!(left(&office, 200), 1);
    }

    #[test]
    fn a_recipient_asked_for_again_and_again_tries_the_same_patience() {
        let office = Office::new(&per_network("recipients", "1/1h"));
        assert_eq!(to(&office, "one", &[]), DUNNO);
        for attempt in 0..15 {
            assert!(to(&office, "two", &[]).starts_with("452 4.5.3 "), "{attempt}");
        }
        assert_eq!(to(&office, "two", &[]), DUNNO);
    }

    #[test]
    fn a_postfix_under_stress_hangs_up_at_the_first_and_gets_none() {
        let office = Office::new(&per_network("recipients", "2/1h"));
        let stress = [("stress", "yes")];
        for local in ["one", "two", "three", "four"] {
            assert_eq!(to(&office, local, &stress), DUNNO, "{local}");
        }
        // Where nobody was accepted there is nothing to lose.
        let other = [("stress", "yes"), ("instance", "b"), ("client_port", "1")];
        assert!(to(&office, "five", &other).starts_with("421 4.5.3 "));
        let calm = [("instance", "c"), ("client_port", "2")];
        assert!(to(&office, "five", &calm).starts_with("452 4.5.3 "), "it was charged");
    }

    #[test]
    fn greylisting_under_stress_remembers_whom_it_hangs_up_on() {
        let settings = "limit = []\n[greylist]\nmode = \"enforce\"\ndelay = \"5m\"";
        let office = Office::new(settings);
        let stress = |port| [("stress", "yes"), ("instance", port), ("client_port", port)];
        assert!(to(&office, "one", &stress("1")).starts_with("421 4.7.1 "));
        office.wait(300);
        for local in ["one", "two", "three"] {
            assert_eq!(to(&office, local, &stress("2")), DUNNO, "{local}");
        }
    }

    /// Nobody asks it about DATA perhaps.
    #[test]
    fn what_a_domain_requires_is_never_let_pass() {
        let office = Office::new(
            "limit = []\n[[access.require]]\nrecipient_domain = \"bank.example\"\ntls = true",
        );
        let bank = |more: &[(&str, &str)]| {
            office.ask(&[&[("recipient", "one@bank.example")], more].concat())
        };
        assert_eq!(to(&office, "one", &[]), DUNNO);
        assert!(bank(&[]).starts_with("451 4.7.0 "));
        assert!(bank(&[("stress", "yes"), ("sender", "b@example.net")]).starts_with("421 4.7.0 "));
    }

    /// Postfix tells a milter whom a policy service has refused.
    #[test]
    fn it_is_one_patience_with_that_of_a_milter() {
        let settings = "limit = []\n[greylist]\nmode = \"enforce\"\ndelay = \"5m\"";
        let office = Office::new(settings);
        let mut milter = office.milter(60_395);
        milter.on(mail(100));
        for _ in 0..15 {
            let address = Address::new(b"nobody@example.org");
            milter.on(Event::Recipient { address, fate: Fate::Unknown });
        }
        assert!(to(&office, "one", &[]).starts_with("421 4.7.1 "));
    }
}
