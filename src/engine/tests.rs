use super::session::told_wait;
use super::*;
use crate::clock::ManualClock;
use crate::config::Settings;
use crate::meter::key::Secret;
use crate::policy::decision::Decision;
use crate::policy::signal::{Context, Ledger, Round, Signal};
use crate::smtp::address::{Address, ClientText};
use crate::smtp::event::Event;

/// A signal with a fault.
struct Faulty;

impl Signal for Faulty {
    fn name(&self) -> &'static str {
        "faulty"
    }

    fn assess(&self, _: &Context<'_>, _: &Ledger, _: &mut Round) {
        panic!("a fault of ours");
    }

    fn settle(&self, _: &Context<'_>, _: &Decision, _: &mut Ledger) {
        panic!("another");
    }
}

#[test]
fn a_fault_of_ours_lets_mail_pass_and_is_counted() {
    let settings = Settings::default();
    let memory = Memory::new(&Secret::new([0; 16]), settings.bounds());
    let Ok(mut policy) = settings.policy(&memory) else { panic!("the defaults hold") };
    policy.add_signal(Box::new(Faulty));
    let clock = ManualClock::at(Time::from_secs(1_800_000_000));
    let engine = Engine::new(Box::new(clock), memory, policy);
    let client = Client::new([192, 0, 2, 7].into());
    let door = settings.listen[0].door();
    let mut session = engine.session(client, door);
    let sender = Address::new(b"<a@example.net>");
    for event in [
        Event::Connect,
        Event::Helo { name: ClientText::new(b"mx.example.net") },
        Event::Mail { sender, size: None, user: None, tls: false },
        Event::Data { unseen: 0 },
        Event::EndOfMessage { size: None },
    ] {
        assert_eq!(session.on(event), Answer::Pass);
    }
    drop(session);
    let metrics = engine.metrics();
    assert!(metrics.contains("postpone_failures_total{kind=\"panic\"} 6"), "{metrics}");
    assert!(metrics.contains("postpone_sessions_open 0"), "{metrics}");
}

#[test]
fn an_id_is_read_as_it_is_told() {
    for id in [0, 1, 31, 32, (1_800_000_000_000 << 12) | 0xabc, (1 << 55) - 1].map(Id) {
        assert_eq!(Id::parse(&id.to_string()), Some(id));
        assert_eq!(Id::parse(&id.to_string().to_uppercase()), Some(id));
    }
    for text in ["", "0", "0000000000u", "000000000000", "é000000000"] {
        assert_eq!(Id::parse(text), None, "{text}");
    }
}

#[test]
fn the_wait_told_is_never_less_and_at_most_a_quarter_or_five_seconds_more() {
    for ms in [0, 1, 999, 1_000, 1_001, 19_999, 20_000, 60_000, 86_400_000] {
        for id in 0..1_000 {
            let told = told_wait(Duration::from_millis(ms), Id(id)) * 1_000;
            assert!(told >= ms.max(1) && told <= ms.max(1) + (ms / 4).max(5_000), "{ms} {told}");
        }
    }
}
