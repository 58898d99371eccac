//! The milter front: Sendmail's mail filter protocol, over indymilter.
//!
//! A callback takes the words out of a frame, hands one event to the session, and gives its answer
//! back. indymilter's data of a connection is our session; when the connection ends, however it
//! ends, the session is dropped.

use std::ffi::{CStr, CString};
use std::future::{Future, ready};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use indymilter::{
    Actions, CallbackFuture, Callbacks, Config, Context, EomContext, MacroStage, Macros,
    NegotiateContext, ProtoOpts, SetErrorReply, SmtpReply, SocketInfo, Status,
};
use tokio::sync::{mpsc, watch};

use super::listener::{Acceptor, Bound};
use super::stream::Listener;
use crate::engine::{Answer, Door, Engine, Session};
use crate::smtp::address::{Address, ClientText};
use crate::smtp::client::Client;
use crate::smtp::event::{Event, Fate};
use crate::telemetry::Failure;

/// Serves a socket until `stopping` becomes true and its sessions have ended, or the grace is
/// over.
pub async fn serve(
    bound: Bound,
    engine: Arc<Engine>,
    door: Door,
    max_sessions: usize,
    stopping: watch::Receiver<bool>,
    grace: Duration,
) -> io::Result<()> {
    let (acceptor, ended) = Acceptor::new(bound, engine.clone(), stopping.clone())?;
    let listener = Listener { acceptor, engine: engine.clone(), stopping: stopping.clone() };
    // indymilter's own default of two hours for the next command stays: an MTA's session may be
    // as long.
    let config = Config { max_connections: max_sessions, ..Config::default() };
    let drained = drained(stopping, ended, grace);
    indymilter::run(listener, callbacks(engine, door), config, drained).await
}

async fn drained(
    mut stopping: watch::Receiver<bool>,
    mut ended: mpsc::Receiver<()>,
    grace: Duration,
) {
    let _ = stopping.wait_for(|stopping| *stopping).await;
    let _ = tokio::time::timeout(grace, ended.recv()).await;
}

/// What we ask of the MTA, of what it offers: no unknown commands, headers or body, but recipients
/// that it has refused. Seven round trips a message, and the body never crosses the socket.
const WANTED: ProtoOpts = ProtoOpts::NO_UNKNOWN
    .union(ProtoOpts::NO_HEADER)
    .union(ProtoOpts::NO_EOH)
    .union(ProtoOpts::NO_BODY)
    .union(ProtoOpts::REJECTED_RCPT);

/// Macros by the stage in which they are read. An old value lingers in later ones.
const MACROS: [(MacroStage, &CStr); 5] = [
    (
        MacroStage::Connect,
        c"j {client_addr} {client_ptr} {client_resolve} {client_connections} {daemon_name} {daemon_port}",
    ),
    (MacroStage::Mail, c"{auth_authen} {auth_type} {mail_addr} {tls_version}"),
    (MacroStage::Rcpt, c"{rcpt_mailer} {rcpt_host} {rcpt_addr}"),
    // Sendmail 8.17 sends the macros of the end of message only to who has asked for some at the
    // end of the header as well: its milter.c tests the wrong flag.
    (MacroStage::Eoh, c"i"),
    (MacroStage::Eom, c"i {msg_size}"),
];

/// The callbacks of a milter over this engine.
pub fn callbacks(engine: Arc<Engine>, door: Door) -> Callbacks<Box<Session>> {
    Callbacks::new()
        .on_negotiate(|cx, actions, opts| done(negotiate(cx, actions, opts)))
        .on_connect(move |cx, name, socket| done(connect(cx, &engine, &door, &name, &socket)))
        .on_helo(|cx, name| {
            done(ask(cx, |_| Event::Helo { name: ClientText::new(name.as_bytes()) }))
        })
        .on_mail(|cx, args| done(ask(cx, |macros| mail(&args, macros))))
        .on_rcpt(|cx, args| done(ask(cx, |macros| recipient(&args, macros))))
        .on_data(|cx| done(ask(cx, |_| Event::Data { unseen: 0 })))
        .on_eom(|cx| done(end_of_message(cx)))
        .on_abort(|cx| done(ask(cx, |_| Event::Abort)))
        .on_close(|cx| {
            cx.data = None;
            done(Status::Continue)
        })
}

fn done<'a>(status: Status) -> CallbackFuture<'a> {
    let future: std::pin::Pin<Box<dyn Future<Output = Status> + Send>> = Box::pin(ready(status));
    future
}

fn negotiate(cx: &mut NegotiateContext<Box<Session>>, offered: Actions, opts: ProtoOpts) -> Status {
    cx.requested_actions = Actions::empty();
    cx.requested_opts = WANTED & opts;
    if offered.contains(Actions::REQUEST_MACROS) {
        cx.requested_macros = MACROS.map(|(stage, names)| (stage, names.to_owned())).into();
    }
    Status::Continue
}

fn connect(
    cx: &mut Context<Box<Session>>,
    engine: &Arc<Engine>,
    door: &Door,
    name: &CStr,
    socket: &SocketInfo,
) -> Status {
    let address = match socket {
        SocketInfo::Inet(address) => Some((address.ip(), Some(address.port()))),
        SocketInfo::Unix(_) | SocketInfo::Unknown => {
            text(&cx.macros, c"{client_addr}").and_then(|address| {
                let address = address.strip_prefix("IPv6:").unwrap_or(address);
                address.parse::<IpAddr>().ok().map(|address| (address, None))
            })
        }
    };
    let Some((address, port)) = address else {
        // Without a session every later command of this client is answered with Continue.
        engine.failed(Failure::Address, &"a client has no address that can be read");
        return Status::Continue;
    };
    let mut client = Client::new(address);
    client.port = port;
    client = with_name(client, name, text(&cx.macros, c"{client_resolve}"));
    cx.data = Some(Box::new(engine.session(client, door.clone())));
    ask(cx, |_| Event::Connect)
}

/// The client with its name, if the MTA has confirmed it. Postfix says `unknown` otherwise; Sendmail
/// gives the address in brackets, or a name that does not hold, as `{client_resolve}` tells.
fn with_name(client: Client, name: &CStr, resolved: Option<&str>) -> Client {
    let name = name.to_str().unwrap_or_default();
    let is_name = !name.is_empty() && name != "unknown" && !name.starts_with('[');
    match resolved {
        Some("TEMP") => client.of_unsure_name(),
        Some("OK") | None if is_name => client.named(name),
        _ => client,
    }
}

fn mail(args: &[CString], macros: &Macros) -> Event {
    let (path, parameters) =
        args.split_first().map_or((&b""[..], &[][..]), |(path, rest)| (path.as_bytes(), rest));
    // RFC 1870 section 6.
    let size = parameters.iter().filter_map(|parameter| parameter.to_str().ok()).find_map(|p| {
        let (key, value) = p.split_once('=')?;
        key.eq_ignore_ascii_case("SIZE").then(|| value.parse().ok())?
    });
    let user = macros.get(c"{auth_authen}").filter(|user| !user.is_empty());
    let user = user.map(|user| ClientText::new(user.to_bytes()));
    let tls = text(macros, c"{tls_version}").is_some_and(|version| !version.is_empty());
    Event::Mail { sender: Address::new(path), size, user, tls }
}

fn recipient(args: &[CString], macros: &Macros) -> Event {
    let path = args.first().map_or(&b""[..], |path| path.as_bytes());
    let fate = match text(macros, c"{rcpt_mailer}") {
        Some("error") => refused_for(text(macros, c"{rcpt_host}").unwrap_or_default()),
        _ => Fate::Offered,
    };
    Event::Recipient { address: Address::new(path), fate }
}

/// What the MTA's enhanced code says of a recipient that it has refused (RFC 3463 section 3.2).
fn refused_for(enhanced: &str) -> Fate {
    match enhanced {
        // These two speak of the sender.
        "5.1.7" | "5.1.8" => Fate::Rejected,
        _ if enhanced.starts_with("5.1.") => Fate::Unknown,
        _ => Fate::Rejected,
    }
}

fn end_of_message(cx: &mut EomContext<Box<Session>>) -> Status {
    if let Some(session) = &mut cx.data {
        // To look for a macro that is not there takes as long as a decision.
        let size = session.counts_bytes().then(|| text(&cx.macros, c"{msg_size}")).flatten();
        let size = size.and_then(|size| size.parse().ok());
        session.on(Event::EndOfMessage { size });
    }
    // A refusal here would come too late: the letter for it makes Postfix lose the mail.
    Status::Continue
}

fn ask(cx: &mut Context<Box<Session>>, event: impl FnOnce(&Macros) -> Event) -> Status {
    let Some(session) = &mut cx.data else { return Status::Continue };
    match session.on(event(&cx.macros)) {
        Answer::Pass => Status::Continue,
        Answer::Refuse(refused) => say(&mut cx.reply, &refused.reply),
    }
}

fn say(to: &mut SmtpReply, reply: &crate::smtp::reply::Reply) -> Status {
    let enhanced = reply.enhanced().to_string();
    let text = [escaped(reply.text())];
    // It cannot fail with a text as short as ours; if it did, the MTA's own 451 would say it.
    let _ = to.set_error_reply(reply.code().digits(), Some(&enhanced), text);
    Status::Tempfail
}

/// indymilter's bound on a line, after escaping.
const LONGEST_ESCAPED: usize = 980;

/// A single `%` is an escape to both MTAs: Sendmail answers with a permanent 550, Postfix drops
/// it. This is the one place where it is doubled.
fn escaped(text: &str) -> String {
    let escaped = text.replace('%', "%%");
    if escaped.len() <= LONGEST_ESCAPED { escaped } else { text.replace('%', "?") }
}

fn text<'a>(macros: &'a Macros, name: &CStr) -> Option<&'a str> {
    macros.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percent_sign_is_doubled_and_never_left_single() {
        assert_eq!(escaped("50% off"), "50%% off");
        assert_eq!(escaped(&"%".repeat(496)), "?".repeat(496));
    }

    #[test]
    fn what_is_asked_of_the_mta_is_what_the_design_measured() {
        assert_eq!(WANTED.bits(), 0x970);
    }
}
