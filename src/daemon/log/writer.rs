//! Where lines end up. One that cannot be written is lost and counted; one that was cut is closed
//! before the next, so that no line begins inside another.

use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Writes whole lines, and never fails: nobody could be told.
pub(super) struct Lines<W> {
    to: W,
    /// Whether the last line has been written in part only.
    cut: bool,
    lost: Arc<AtomicUsize>,
}

impl<W: Write> Lines<W> {
    pub(super) fn new(to: W, lost: Arc<AtomicUsize>) -> Self {
        Self { to, cut: false, lost }
    }

    /// How much of it could be written.
    fn put(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        while done < bytes.len() {
            match self.to.write(&bytes[done..]) {
                Ok(more @ 1..) => done += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => break,
            }
        }
        done
    }

    /// Writes one more line, or counts it as lost.
    pub(super) fn write(&mut self, line: &[u8]) {
        if self.cut {
            self.cut = self.put(b"\n") == 0;
        }
        let done = if self.cut { 0 } else { self.put(line) };
        if done < line.len() {
            self.cut |= done > 0;
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// A disk with so much room.
    struct Disk {
        room: usize,
        holds: Vec<u8>,
    }

    impl Write for &mut Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let some = bytes.len().min(self.room);
            if some == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            self.room -= some;
            self.holds.extend(&bytes[..some]);
            Ok(some)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_that_was_cut_is_closed_before_the_next_and_each_that_was_lost_is_counted() {
        let (mut disk, lost) = (Disk { room: 10, holds: Vec::new() }, Arc::default());
        let write = |disk: &mut Disk, cut, text: &[u8]| {
            let mut lines = Lines { to: disk, cut, lost: Arc::clone(&lost) };
            lines.write(text);
            lines.cut
        };
        let cut = write(&mut disk, false, b"first\n");
        let cut = write(&mut disk, cut, b"second\n");
        let cut = write(&mut disk, cut, b"third\n");
        assert_eq!((cut, lost.load(Ordering::Relaxed)), (true, 2));
        disk.room = 100;
        assert!(!write(&mut disk, cut, b"fourth\n"));
        assert_eq!(disk.holds, b"first\nseco\nfourth\n");
        assert_eq!(lost.load(Ordering::Relaxed), 2);
    }
}
