//! What an administrator has had forgotten or ended stays so: over a stop, a kill, and while state is
//! being read.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use postpone::clock::Clock;

use crate::host::{DELAY, GREYLIST, Host, clock, of, over_limit, waits};
use crate::shelf::{Call, Fate, Shelf};

/// One message in an hour, and a rest that doubles with each that is too many.
const LIMITS: &str = "[greylist]\nmode = \"off\"\n[behaviour]\nmode = \"off\"\n[[limit]]\n\
    name = \"messages\"\ncount = \"messages\"\nquota = \"1/1h\"\n\
    penalty = { factor = 2, cap = \"8h\", decay = \"1h\" }\n";
const HOUR: Duration = Duration::from_secs(3_600);

fn address(client: u8) -> IpAddr {
    Ipv4Addr::new(198, 18, client, 7).into()
}

/// From now on nothing is written any more, as after `kill -9`.
fn kill(shelf: &Shelf, host: Host) {
    shelf.plan(|_| Fate::Dies { done: false });
    let _ = host.stop();
    shelf.repaired();
}

#[test]
fn a_limit_that_was_forgotten_does_not_come_back_from_before_a_restart() {
    let (shelf, clock) = (Shelf::default(), clock());
    let host = Host::started(&shelf, &clock, LIMITS);
    for client in [1, 2] {
        assert_eq!(host.offer(client, "anna"), Ok(()));
        assert_eq!(host.offer(client, "anna"), Err(over_limit(HOUR)));
    }
    host.stop().unwrap();
    assert_eq!(of(&shelf.kept(), "meters").len(), 2);
    assert_eq!(of(&shelf.kept(), "penalties").len(), 2);

    let host = Host::started(&shelf, &clock, LIMITS);
    assert!(host.offer(1, "anna").is_err() && host.offer(2, "anna").is_err());
    assert!(host.engine.forget(address(1)).forgotten.contains(&"limit messages".to_owned()));
    shelf.until("the disk to forget", |kept| of(kept, "meters").len() == 1);
    host.flushed(&shelf);
    kill(&shelf, host);

    let host = Host::started(&shelf, &clock, LIMITS);
    assert_eq!(host.offer(1, "anna"), Ok(()));
    assert!(host.offer(2, "anna").is_err(), "of another client nothing was forgotten");
    host.stop().unwrap();
}

#[test]
fn what_is_forgotten_or_ended_while_state_is_being_read_is_not_read_back() {
    let (shelf, clock) = (Shelf::default(), clock());
    let host = Host::started(&shelf, &clock, GREYLIST);
    ["anna", "bert"].iter().for_each(|recipient| host.gets_to_know(1, recipient));
    let network = "192.0.2.0/24".parse().unwrap();
    host.engine.allow(network, clock.now() + HOUR).unwrap();
    host.flushed(&shelf);
    host.stop().unwrap();
    let before = of(&shelf.kept(), "proven").len();
    assert_eq!((before, of(&shelf.kept(), "allowed").len()), (1, 1));

    let (gate, _opens) = shelf.stalls_at(|call| matches!(call, Call::Scan { .. }));
    let host = Host::start(&shelf, &clock, GREYLIST);
    gate.reached_by(1);
    assert!(host.engine.allow_no_more(network), "it may well have been allowed");
    let said = host.engine.forget(address(1));
    assert!(said.forgotten.iter().any(|what| what.contains("come back")), "{said:?}");
    gate.open();
    host.loaded(&shelf);
    assert_eq!(host.engine.allowed(), []);
    assert_eq!(of(&host.memory(), "proven").len(), 0);
    assert_eq!(host.offer(1, "carl"), Err(waits(DELAY)), "it is proven no more");
    host.flushed(&shelf);
    kill(&shelf, host);
    assert_eq!((of(&shelf.kept(), "proven").len(), of(&shelf.kept(), "allowed").len()), (0, 0));
}
