//! A Postfix smtpd that asks the policy service, over a real socket, once for each recipient.

use super::PATIENCE;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU32, Ordering};

pub const DUNNO: &str = "DUNNO";

/// One connection of one smtpd process.
pub struct Smtpd(BufReader<TcpStream>);

impl Smtpd {
    pub fn dial(endpoint: &str) -> Self {
        Self::try_dial(endpoint).expect("the policy service's port")
    }

    pub fn try_dial(endpoint: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(endpoint.trim_start_matches("inet:"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// What a message from this client to this recipient is answered. Each is one of its own, from
    /// a port of its own.
    pub fn ask(&mut self, client: &str, recipient: &str) -> String {
        self.try_ask(client, recipient).expect("an answer of the policy service")
    }

    /// The same, if the service lives.
    pub fn try_ask(&mut self, client: &str, recipient: &str) -> io::Result<String> {
        static MESSAGES: AtomicU32 = AtomicU32::new(0);
        let message = MESSAGES.fetch_add(1, Ordering::Relaxed);
        let port = 10_000 + message % 50_000;
        let request = format!(
            "request=smtpd_access_policy\nprotocol_state=RCPT\nprotocol_name=ESMTP\n\
             client_address={client}\nclient_name=unknown\nclient_port={port}\n\
             helo_name=mx.example.net\nsender=sender@example.net\n\
             recipient={recipient}@example.org\nrecipient_count=0\nqueue_id=\n\
             instance={message:x}\nsize=0\nstress=\n\n"
        );
        self.0.get_mut().write_all(request.as_bytes())?;
        let (mut action, mut end) = (String::new(), String::new());
        self.0.read_line(&mut action)?;
        self.0.read_line(&mut end)?;
        match action.trim_end().strip_prefix("action=") {
            Some(action) if end == "\n" => Ok(action.to_owned()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}
