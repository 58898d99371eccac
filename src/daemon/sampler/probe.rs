//! Whether a server that mail is passed on to answers: a connection, and perhaps the first line it
//! says, within a deadline.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::front::address::Address;

/// So many failures in a row make a probe fail, and so many successes end it: one lost packet, or
/// one answer of a server that is restarting, is not the state it is in. With a period of a second
/// it is known after two, and a deadline.
const IN_A_ROW: u32 = 2;

/// As much of the first line is looked at (RFC 5321 section 4.5.3.1.5: 512 octets of a reply).
const LONGEST_BANNER: usize = 512;

/// What is asked, and how.
pub(super) struct Probe {
    pub(super) connect: Address,
    pub(super) banner: Option<String>,
    pub(super) deadline: Duration,
}

/// How it failed, and why, for the log.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// There is no connection.
    Unreachable(String),
    /// There is, and it does not say what it should.
    Wrong(String),
}

impl Probe {
    pub(super) async fn ask(&self) -> Result<(), Outcome> {
        let mut reached = false;
        let asked = async {
            match &self.connect {
                Address::Inet(address) => {
                    let stream = TcpStream::connect(address).await;
                    let stream = stream.map_err(|e| Outcome::Unreachable(e.to_string()))?;
                    reached = true;
                    self.listen(stream).await
                }
                Address::Unix(path) => {
                    let stream = UnixStream::connect(path).await;
                    let stream = stream.map_err(|e| Outcome::Unreachable(e.to_string()))?;
                    reached = true;
                    self.listen(stream).await
                }
            }
        };
        let outcome = timeout(self.deadline, asked).await;
        outcome.unwrap_or_else(|_| match reached {
            false => Err(Outcome::Unreachable("no connection within the deadline".into())),
            true => Err(Outcome::Wrong("no first line within the deadline".into())),
        })
    }

    async fn listen(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<(), Outcome> {
        let Some(wanted) = &self.banner else { return Ok(()) };
        let mut said = Vec::new();
        let whole = |said: &[u8]| said.contains(&b'\n') || said.len() >= LONGEST_BANNER;
        while !whole(&said) {
            match stream.read_buf(&mut said).await {
                Ok(0) => return Err(Outcome::Wrong("it closed before its first line".into())),
                Ok(_) => {}
                Err(error) => return Err(Outcome::Wrong(error.to_string())),
            }
        }
        if !said.starts_with(wanted.as_bytes()) {
            let line = said.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
            let line = String::from_utf8_lossy(&line[..line.len().min(LONGEST_BANNER)]);
            return Err(Outcome::Wrong(format!("it says {line:?}, not {wanted:?}")));
        }
        // It is fine, whatever becomes of the farewell; but to hang up on its answer would be an
        // error in its log.
        let farewell = async {
            stream.write_all(b"QUIT\r\n").await?;
            stream.read(&mut [0; 64]).await
        };
        let _ = timeout(FAREWELL, farewell).await;
        Ok(())
    }
}

/// How long the answer to QUIT is waited for.
const FAREWELL: Duration = Duration::from_millis(200);

/// What a probe amounts to, without its flaps.
pub(super) struct Steady {
    failing: bool,
    /// How many in a row said otherwise.
    against: u32,
}

impl Steady {
    pub(super) fn new(failing: bool) -> Self {
        Self { failing, against: 0 }
    }

    /// Whether it fails, after one more.
    pub(super) fn after(&mut self, success: bool) -> bool {
        if success == self.failing {
            self.against += 1;
        } else {
            self.against = 0;
        }
        if self.against >= IN_A_ROW {
            *self = Self::new(!self.failing);
        }
        self.failing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use tokio::net::TcpListener;

    fn run<T>(story: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(story)
    }

    #[test]
    fn flaps_are_no_change_of_state() {
        let mut steady = Steady::new(false);
        let said: String = "-+-+--+--+-+-++-"
            .chars()
            .map(|c| if steady.after(c == '+') { 'F' } else { '.' })
            .collect();
        assert_eq!(said, ".....FFFFFFFFF..");
    }

    /// A server that says this, and what it is told.
    async fn server(says: &'static str, banner: &str) -> (Result<(), Outcome>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connect = Address::Inet(listener.local_addr().unwrap());
        let banner = Some(banner.to_owned());
        let probe = Probe { connect, banner, deadline: Duration::from_secs(10) };
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(says.as_bytes()).await.unwrap();
            let mut told = vec![0; 64];
            let length = stream.read(&mut told).await.unwrap();
            stream.write_all(b"221 bye\r\n").await.unwrap();
            String::from_utf8_lossy(&told[..length]).into_owned()
        };
        tokio::join!(probe.ask(), serve)
    }

    #[test]
    fn a_server_that_greets_as_it_should_is_told_goodbye() {
        let (outcome, told) = run(server("220 lmtp.example.org LMTP\r\n", "220 "));
        assert_eq!((outcome, told.as_str()), (Ok(()), "QUIT\r\n"));
    }

    #[test]
    fn another_greeting_is_a_fault_and_none_is_one_too() {
        let (outcome, _) = run(server("421 lmtp.example.org busy\r\n", "220"));
        let why = "it says \"421 lmtp.example.org busy\", not \"220\"".to_owned();
        assert_eq!(outcome, Err(Outcome::Wrong(why)));
        run(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let connect = Address::Inet(listener.local_addr().unwrap());
            let (banner, deadline) = (Some("220".into()), Duration::from_millis(20));
            let mute = Probe { connect: connect.clone(), banner, deadline };
            let why = "no first line within the deadline".to_owned();
            assert_eq!(mute.ask().await, Err(Outcome::Wrong(why)));
            assert_eq!(Probe { banner: None, ..mute }.ask().await, Ok(()));
            drop(listener);
            let gone = Probe { connect, banner: None, deadline: Duration::from_secs(10) };
            assert!(matches!(gone.ask().await, Err(Outcome::Unreachable(_))));
        });
    }
}
