//! Lines on their way to whoever reads them. The thread that decides puts a line into the queue and
//! goes on; a thread of its own writes. A full queue loses lines, and counts them.

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use super::super::end::hear_no_signals;
use super::writer::Lines;

/// Bytes of lines that may wait to be written, with what each line takes beside its text.
const MOST_WAITING: usize = 4 << 20;
const BESIDE_A_LINE: usize = 64;

enum Message {
    Line(Vec<u8>),
    /// All before it is written.
    Reached(Sender<()>),
}

/// The end of the queue that lines are put into.
pub(super) struct Queue {
    messages: Sender<Message>,
    waiting: Arc<AtomicUsize>,
    /// Lines that found no room, and those that could not be written.
    lost: Arc<AtomicUsize>,
}

impl Queue {
    /// Begins to write to this.
    ///
    /// # Errors
    ///
    /// The system gives no thread.
    pub(super) fn start(to: impl Write + Send + 'static) -> io::Result<Self> {
        let (messages, coming) = mpsc::channel();
        let (waiting, lost) = (Arc::default(), Arc::default());
        let queue = Self { messages, waiting: Arc::clone(&waiting), lost: Arc::clone(&lost) };
        let mut lines = Lines::new(to, lost);
        thread::Builder::new().name("log".into()).spawn(move || {
            hear_no_signals();
            // A line that makes us panic is lost, and no other.
            let mut write = || write(&coming, &waiting, &mut lines);
            while catch_unwind(AssertUnwindSafe(&mut write)).is_err() {}
        })?;
        Ok(queue)
    }

    /// How many lines have been lost.
    pub(super) fn lost(&self) -> usize {
        self.lost.load(Ordering::Relaxed)
    }

    /// Waits until all that is in the queue is written, but no longer than this.
    pub(super) fn drain(&self, at_most: Duration) {
        let (reached, all_written) = mpsc::channel();
        let _ = self.messages.send(Message::Reached(reached));
        let _ = all_written.recv_timeout(at_most);
    }
}

/// Writes until nobody can put in more.
fn write<W: Write>(coming: &Receiver<Message>, waiting: &AtomicUsize, to: &mut Lines<W>) {
    for message in coming {
        match message {
            Message::Line(line) => {
                waiting.fetch_sub(line.len() + BESIDE_A_LINE, Ordering::Relaxed);
                to.write(&line);
            }
            Message::Reached(reached) => drop(reached.send(())),
        }
    }
}

impl Write for &Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let size = line.len() + BESIDE_A_LINE;
        let before = self.waiting.fetch_add(size, Ordering::Relaxed);
        let fits = before + size <= MOST_WAITING;
        if !fits || self.messages.send(Message::Line(line.to_vec())).is_err() {
            self.waiting.fetch_sub(size, Ordering::Relaxed);
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// A reader that reads when it is let.
    struct Slow {
        read: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            assert!(bytes != b"bad\n", "a fault of ours");
            self.read.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_queue_loses_the_newest_lines_and_counts_them() {
        let read = Arc::default();
        let queue = Queue::start(Slow { read: Arc::clone(&read) }).unwrap();
        let stuck = read.lock().unwrap();
        let line = [b'x'; 1_000];
        for _ in 0..5_000 {
            (&queue).write_all(&line).unwrap();
        }
        queue.drain(Duration::ZERO);
        let kept = MOST_WAITING / (line.len() + BESIDE_A_LINE);
        // The one that is being written waits no more.
        let lost = queue.lost();
        assert!((5_000 - kept - 1..=5_000 - kept).contains(&lost), "{lost} of 5000 lost");
        drop(stuck);
        queue.drain(Duration::from_secs(60));
        assert_eq!(read.lock().unwrap().len(), (5_000 - lost) * line.len());
    }

    #[test]
    fn a_line_at_which_its_writer_panics_leaves_those_behind_it_as_they_are() {
        let read = Arc::default();
        let queue = Queue::start(Slow { read: Arc::clone(&read) }).unwrap();
        for line in ["one\n", "bad\n", "two\n"] {
            (&queue).write_all(line.as_bytes()).unwrap();
        }
        queue.drain(Duration::from_secs(60));
        assert_eq!(*read.lock().unwrap(), b"one\ntwo\n");
    }
}
