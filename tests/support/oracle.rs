//! The same rules behind indymilter, whose types the front speaks and whose run loop it replaces:
//! what this filter answers is what the front is held against. Its callbacks do at each command
//! what the front does, as far as indymilter can read it.

use std::ffi::{CStr, CString};
use std::future::{Future, ready};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::thread;

use indymilter::{
    Actions, CallbackFuture, Callbacks, Config, Context, EomContext, MacroStage, Macros,
    NegotiateContext, ProtoOpts, SetErrorReply, SmtpReply, SocketInfo, Status,
};
use postpone::engine::{Answer, Door, Engine, Session};
use postpone::smtp::address::{Address, ClientText};
use postpone::smtp::client::Client;
use postpone::smtp::event::{Event, Fate};
use postpone::smtp::reply::Reply;
use tokio::net::UnixListener;
use tokio::sync::oneshot;

/// A filter over indymilter's loop, which ends with this value.
pub struct Oracle(#[expect(dead_code, reason = "held, never used")] oneshot::Sender<()>);

/// Serves this engine at this path, asking for these steps.
pub fn serve(path: &Path, engine: Arc<Engine>, door: Door, wanted: u32) -> Oracle {
    let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let (oracle, ended) = oneshot::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let callbacks = callbacks(engine, door, ProtoOpts::from_bits_truncate(wanted));
        runtime.unwrap().block_on(async {
            let listener = UnixListener::from_std(listener).unwrap();
            indymilter::run(listener, callbacks, Config::default(), ended).await
        })
    });
    Oracle(oracle)
}

const MACROS: [(MacroStage, &CStr); 5] = [
    (
        MacroStage::Connect,
        c"j {client_addr} {client_ptr} {client_resolve} {client_connections} {daemon_name} {daemon_port}",
    ),
    (MacroStage::Mail, c"{auth_authen} {auth_type} {mail_addr} {tls_version}"),
    (MacroStage::Rcpt, c"{rcpt_mailer} {rcpt_host} {rcpt_addr}"),
    (MacroStage::Eoh, c"i"),
    (MacroStage::Eom, c"i {msg_size}"),
];

/// The callbacks of a milter over this engine.
fn callbacks(engine: Arc<Engine>, door: Door, wanted: ProtoOpts) -> Callbacks<Box<Session>> {
    Callbacks::new()
        .on_negotiate(move |cx, actions, opts| done(negotiate(cx, actions, opts & wanted)))
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
    let future: Pin<Box<dyn Future<Output = Status> + Send>> = Box::pin(ready(status));
    future
}

fn negotiate(cx: &mut NegotiateContext<Box<Session>>, offered: Actions, opts: ProtoOpts) -> Status {
    cx.requested_actions = Actions::empty();
    cx.requested_opts = opts;
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
                address.parse().ok().map(|address| (address, None))
            })
        }
    };
    let Some((address, port)) = address else {
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
        let size = text(&cx.macros, c"{msg_size}");
        let size = size.and_then(|size| size.parse().ok());
        session.on(Event::EndOfMessage { size });
    }
    Status::Continue
}

fn ask(cx: &mut Context<Box<Session>>, event: impl FnOnce(&Macros) -> Event) -> Status {
    let Some(session) = &mut cx.data else { return Status::Continue };
    match session.on(event(&cx.macros)) {
        Answer::Pass => Status::Continue,
        Answer::Refuse(refused) => say(&mut cx.reply, &refused.reply),
    }
}

fn say(to: &mut SmtpReply, reply: &Reply) -> Status {
    let enhanced = reply.enhanced().to_string();
    let text = [reply.text().replace('%', "%%")];
    // It cannot fail with a text as short as ours; if it did, the MTA's own 451 would say it.
    let _ = to.set_error_reply(reply.code().digits(), Some(&enhanced), text);
    Status::Tempfail
}

fn text<'a>(macros: &'a Macros, name: &CStr) -> Option<&'a str> {
    macros.get(name)?.to_str().ok()
}
