//! The policy service as bytes on a socket: the real listener, and requests that are torn, many at
//! once, too long, or nonsense. What is answered, and why, the unit tests of the front know.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use postpone::clock::SystemClock;
use postpone::config::{Settings, Unusable};
use postpone::engine::Engine;
use postpone::front::listener::{Bound, Serving};
use postpone::front::policyd::{self, Desk};
use postpone::meter::key::Secret;
use postpone::policy::Memory;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(30);
const DUNNO: &str = "action=DUNNO\n\n";
const FRAMES: &str = "postpone_failures_total{kind=\"frame\"}";
const ADDRESSES: &str = "postpone_failures_total{kind=\"address\"}";

/// A policy service on this runtime.
struct Service {
    address: SocketAddr,
    engine: Arc<Engine>,
    stop: watch::Sender<Option<Duration>>,
    served: JoinHandle<std::io::Result<()>>,
}

impl Service {
    fn start(limits: &str) -> Self {
        Self::with_at_most(1_000, limits)
    }

    fn with_at_most(max_connections: usize, limits: &str) -> Self {
        Self::on("inet:127.0.0.1:0", max_connections, limits)
    }

    fn on(address: &str, max_connections: usize, limits: &str) -> Self {
        let text = format!(
            "{limits}\n[access]\nallow = []\n[greylist]\nmode = \"off\"\n\
             [[listen]]\npolicy = \"{address}\"\n"
        );
        let checked = Settings::parse("test", &text);
        let settings = checked.unwrap_or_else(|Unusable(report)| panic!("{report}")).settings;
        let secret = Secret::new([7; 16]);
        let memory = Memory::new(&secret, settings.bounds());
        let Ok(policy) = settings.policy(&memory) else { panic!("{text}") };
        let engine = Engine::new(Box::new(SystemClock), memory, policy);
        let listen = &settings.listen[0];
        let bound = listen.bind(&[]).unwrap();
        bound.listen().unwrap();
        let address = match &bound {
            Bound::Inet(listener) => listener.local_addr().unwrap(),
            Bound::Unix(_) => SocketAddr::from(([0; 4], 0)),
        };
        let (stop, stopping) = watch::channel(None);
        let served = tokio::spawn(policyd::serve(
            bound,
            engine.clone(),
            listen.door(),
            Arc::new(Desk::new(&secret)),
            Serving::new(max_connections, stopping),
        ));
        Self { address, engine, stop, served }
    }

    async fn connect(&self) -> Peer<TcpStream> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Peer(BufReader::new(stream))
    }

    /// The service ends, with all its connections.
    async fn ended(self) {
        timeout(PATIENCE, self.served).await.expect("it ends").unwrap().unwrap();
    }

    fn counted(&self, series: &str) -> u64 {
        let metrics = self.engine.metrics();
        let value = metrics.lines().find_map(|line| line.strip_prefix(series));
        value.unwrap().trim().parse().unwrap()
    }
}

/// Postfix's end of a connection.
struct Peer<S>(BufReader<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
        self.0.flush().await.unwrap();
    }

    /// One answer, whole.
    async fn answer(&mut self) -> String {
        let mut answer = Vec::new();
        while !answer.ends_with(b"\n\n") {
            let byte = timeout(PATIENCE, self.0.read_u8()).await.expect("an answer");
            answer.push(byte.unwrap_or_else(|error| panic!("{error} after {answer:?}")));
        }
        String::from_utf8(answer).unwrap()
    }

    async fn ask(&mut self, request: &str) -> String {
        self.send(request.as_bytes()).await;
        self.answer().await
    }

    /// The service has hung up, and said nothing more.
    async fn closed(mut self) {
        let mut rest = Vec::new();
        // A reset is a hanging up too: what we sent may have been unread.
        let _ = timeout(PATIENCE, self.0.read_to_end(&mut rest)).await.expect("an end");
        assert_eq!(rest, b"");
    }
}

fn request(port: u16, instance: &str, recipient: &str) -> String {
    format!(
        "request=smtpd_access_policy\nprotocol_state=RCPT\nprotocol_name=ESMTP\n\
         client_address=192.0.2.7\nclient_name=unknown\nclient_port={port}\n\
         helo_name=mx.example.net\nsender=a@example.net\nrecipient={recipient}@example.org\n\
         recipient_count=0\nqueue_id=\ninstance={instance}\nsize=0\nstress=\n\n"
    )
}

fn quota(count: &str, quota: &str) -> String {
    format!(
        "[[limit]]\nname = \"x\"\ncount = \"{count}\"\nper = [\"network\"]\nquota = \"{quota}\"\n"
    )
}

#[tokio::test]
async fn a_request_torn_at_every_byte_gets_the_same_answer() {
    let service = Service::start(&quota("messages", "1/1h"));
    let mut peer = service.connect().await;
    assert_eq!(peer.ask(&request(1, "a", "one")).await, DUNNO);
    let refused = request(1, "b", "one");
    let answer = peer.ask(&refused).await;
    assert!(answer.starts_with("action=421 4.7.0 "), "{answer}");
    for at in 0..=refused.len() {
        let (head, tail) = refused.as_bytes().split_at(at);
        peer.send(head).await;
        // The other task must have read the head, or nothing would be torn.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        peer.send(tail).await;
        assert_eq!(peer.answer().await, answer, "torn at {at}");
    }
    assert_eq!(service.counted(FRAMES), 0);
}

#[tokio::test]
async fn byte_by_byte_is_as_good_as_whole() {
    let service = Service::start("limit = []");
    let mut peer = service.connect().await;
    for byte in request(1, "a", "one").as_bytes() {
        peer.send(&[*byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(peer.answer().await, DUNNO);
}

#[tokio::test]
async fn requests_sent_at_once_are_answered_in_order() {
    let service = Service::start(&quota("recipients", "2/1h"));
    let mut peer = service.connect().await;
    // The third is refused, the fourth repeats the first, the fifth repeats the third.
    let all = ["one", "two", "three", "one", "three"].map(|to| request(1, "a", to)).concat();
    peer.send(all.as_bytes()).await;
    let mut answers = Vec::new();
    for _ in 0..5 {
        answers.push(peer.answer().await);
    }
    assert_eq!([&answers[0], &answers[1], &answers[3]], [DUNNO; 3]);
    assert!(answers[2].starts_with("action=452 4.5.3 "), "{answers:?}");
    assert_eq!(answers[4], answers[2]);
}

#[tokio::test]
async fn a_connection_serves_very_many_requests() {
    let service = Service::start(&quota("messages", "5000/1d"));
    let mut peer = service.connect().await;
    for n in 0..5_000 {
        assert_eq!(peer.ask(&request(1, &n.to_string(), "one")).await, DUNNO);
    }
    assert!(peer.ask(&request(1, "more", "one")).await.starts_with("action=421 4.7.0 "));
}

#[tokio::test]
async fn a_request_repeated_over_another_connection_is_the_same() {
    let service = Service::start(&quota("messages", "2/1h"));
    let mut first = service.connect().await;
    assert_eq!(first.ask(&request(1, "a", "one")).await, DUNNO);
    // Postfix gives up waiting, closes, and asks again: it was answered, but it did not hear.
    first.send(request(1, "b", "one").as_bytes()).await;
    let mut second = service.connect().await;
    drop(first);
    assert_eq!(second.ask(&request(1, "b", "one")).await, DUNNO);
    assert_eq!(second.ask(&request(1, "a", "one")).await, DUNNO);
    let answer = second.ask(&request(1, "c", "one")).await;
    assert!(answer.starts_with("action=421 4.7.0 "), "{answer}");
    let mut third = service.connect().await;
    assert_eq!(third.ask(&request(1, "c", "one")).await, answer);
}

#[tokio::test]
async fn a_request_without_an_end_is_answered_counted_and_hung_up_on() {
    let service = Service::start("limit = []");
    let line = format!("sender={}\n", "x".repeat(1_000));
    for text in ["x".repeat(64 << 10), line.repeat(66), "x=\n".repeat(30_000)] {
        let mut peer = service.connect().await;
        // It may hang up before it has all.
        let _ = peer.0.write_all(text.as_bytes()).await;
        assert_eq!(peer.answer().await, DUNNO);
        peer.closed().await;
    }
    assert_eq!(service.counted(FRAMES), 3);
    // One that is just short enough is served.
    let request = request(1, "a", "one");
    let filler = format!("x={}\n", "y".repeat((64 << 10) - request.len() - 3));
    let mut peer = service.connect().await;
    assert_eq!(peer.ask(&(filler + &request)).await, DUNNO);
    assert_eq!(peer.ask(&request).await, DUNNO);
    assert_eq!(service.counted(FRAMES), 3);
}

#[tokio::test]
async fn garbage_is_answered_and_counted_and_a_few_are_forgiven() {
    let service = Service::start(&quota("messages", "1/1h"));
    for (garbage, series) in [
        ("GET / HTTP/1.1\n\n", FRAMES),
        ("\n", FRAMES),
        ("\r\n", FRAMES),
        ("request=smtpd_access_policy\nno attribute\n\n", FRAMES),
        ("request=another\nclient_address=192.0.2.7\n\n", FRAMES),
        ("request=smtpd_access_policy\nprotocol_state=RCPT\n\n", ADDRESSES),
        ("request=smtpd_access_policy\nclient_address=192.0.2.300\n\n", ADDRESSES),
    ] {
        let before = service.counted(series);
        let mut peer = service.connect().await;
        for _ in 0..7 {
            assert_eq!(peer.ask(garbage).await, DUNNO, "{garbage:?}");
            // Between them it still serves.
            assert_eq!(peer.ask(&request(1, "a", "one")).await, DUNNO);
        }
        assert_eq!(peer.ask(garbage).await, DUNNO);
        peer.closed().await;
        assert_eq!(service.counted(series) - before, 8, "{garbage:?}");
    }
    let mut peer = service.connect().await;
    assert!(peer.ask(&request(1, "b", "one")).await.starts_with("action=421 "));
}

#[tokio::test]
async fn that_postfix_is_short_of_processes_is_counted_and_changes_no_answer() {
    let service = Service::start("limit = []");
    let mut peer = service.connect().await;
    let stressed = request(1, "a", "one").replace("stress=", "stress=yes");
    assert_eq!(peer.ask(&stressed).await, DUNNO);
    assert_eq!(peer.ask(&request(1, "b", "one")).await, DUNNO);
    assert_eq!(service.counted("postpone_policy_requests_under_stress_total"), 1);
}

#[tokio::test]
async fn a_client_whose_address_postfix_does_not_know_is_no_garbage() {
    let service = Service::start("limit = []");
    let mut peer = service.connect().await;
    let unknown = request(1, "a", "one").replace("192.0.2.7", "unknown");
    for _ in 0..100 {
        assert_eq!(peer.ask(&unknown).await, DUNNO);
    }
    assert_eq!((service.counted(ADDRESSES), service.counted(FRAMES)), (100, 0));
}

#[tokio::test]
async fn bytes_that_are_no_text_do_not_get_anyone_past_a_limit() {
    // Postfix passes them on where smtputf8_enable = no.
    let service = Service::start(&quota("messages", "1/1h"));
    let mut peer = service.connect().await;
    let request = |instance: &str| {
        let text = request(1, instance, "one");
        let at = text.find("a@example.net").unwrap();
        [&text.as_bytes()[..at], b"caf\xe9\xff", &text.as_bytes()[at..]].concat()
    };
    peer.send(&request("a")).await;
    assert_eq!(peer.answer().await, DUNNO);
    peer.send(&request("b")).await;
    assert!(peer.answer().await.starts_with("action=421 4.7.0 "));
    assert_eq!(service.counted(FRAMES), 0);
}

#[tokio::test]
async fn lines_may_end_as_in_smtp() {
    let service = Service::start("limit = []");
    let mut peer = service.connect().await;
    let request = request(1, "a", "one").replace('\n', "\r\n");
    assert_eq!(peer.ask(&request).await, DUNNO);
    assert_eq!(peer.ask(&request).await, DUNNO);
    assert_eq!(service.counted(FRAMES), 0);
}

#[tokio::test]
async fn who_hangs_up_within_a_request_is_not_counted() {
    let service = Service::start(&quota("messages", "1/1h"));
    let whole = request(1, "a", "one");
    for at in [0, 10, whole.len() - 1] {
        let mut peer = service.connect().await;
        peer.send(&whole.as_bytes()[..at]).await;
        peer.0.shutdown().await.unwrap();
        peer.closed().await;
    }
    assert_eq!(service.counted(FRAMES), 0);
    let mut peer = service.connect().await;
    assert_eq!(peer.ask(&request(2, "b", "one")).await, DUNNO);
}

#[tokio::test]
async fn told_to_stop_it_answers_what_is_under_way_and_hangs_up() {
    let service = Service::start("limit = []");
    let mut idle = service.connect().await;
    assert_eq!(idle.ask(&request(1, "a", "one")).await, DUNNO);
    let mut busy = service.connect().await;
    let text = request(2, "b", "one");
    busy.send(&text.as_bytes()[..40]).await;
    // Answered now, it has read the other connection's half request too, or soon will.
    assert_eq!(idle.ask(&request(1, "a", "two")).await, DUNNO);
    service.stop.send(Some(PATIENCE)).unwrap();
    idle.closed().await;
    assert!(TcpStream::connect(service.address).await.is_err());
    busy.send(&text.as_bytes()[40..]).await;
    assert_eq!(busy.answer().await, DUNNO);
    busy.closed().await;
    service.ended().await;
}

#[tokio::test]
async fn told_to_stop_it_ends_even_when_no_connection_is_free() {
    let service = Service::with_at_most(1, "limit = []");
    let mut only = service.connect().await;
    assert_eq!(only.ask(&request(1, "a", "one")).await, DUNNO);
    let waiting = service.connect().await;
    service.stop.send(Some(PATIENCE)).unwrap();
    only.closed().await;
    waiting.closed().await;
    service.ended().await;
}

#[tokio::test]
async fn more_than_it_may_serve_wait_for_their_turn() {
    let service = Service::with_at_most(2, "limit = []");
    let mut one = service.connect().await;
    let mut two = service.connect().await;
    assert_eq!(one.ask(&request(1, "a", "one")).await, DUNNO);
    assert_eq!(two.ask(&request(2, "b", "one")).await, DUNNO);
    let mut three = service.connect().await;
    three.send(request(3, "c", "one").as_bytes()).await;
    assert_eq!(one.ask(&request(1, "a", "two")).await, DUNNO);
    drop(two);
    assert_eq!(three.answer().await, DUNNO);
}

#[tokio::test]
async fn a_unix_socket_serves_as_well() {
    let folder = std::env::temp_dir().join(format!("postpone-policyd-{}", std::process::id()));
    let path = folder.join("policy.sock");
    let service = Service::on(&format!("unix:{}", path.display()), 10, &quota("messages", "1/1h"));
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let mut peer = Peer(BufReader::new(UnixStream::connect(&path).await.unwrap()));
    assert_eq!(peer.ask(&request(1, "a", "one")).await, DUNNO);
    assert!(peer.ask(&request(1, "b", "one")).await.starts_with("action=421 4.7.0 "));
    service.stop.send(Some(PATIENCE)).unwrap();
    peer.closed().await;
    service.ended().await;
    std::fs::remove_dir_all(folder).unwrap();
}
