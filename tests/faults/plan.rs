//! The faults of a run, drawn from its seed before it begins. They come in four lanes beside each
//! other: the process, what an administrator says, the disk, and the surroundings. Within a lane one is
//! over before the next begins.

use std::fmt;
use std::time::Duration;

use proptest::prelude::RngExt;
use proptest::test_runner::{RngAlgorithm, TestRng};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// SIGKILL, and a start when the fault is over; the same with SIGTERM.
    Kill,
    Terminate,
    /// SIGSTOP, and SIGCONT when it is over.
    Hang,
    Reload,
    /// With settings that cannot be used, which are put right when it is over.
    BadReload,
    Bypass,
    Maintenance,
    /// Of the state.
    DiskFull,
    DiskHangs,
    /// The clock is off by so much until it is over.
    Clock(&'static str),
    /// Standard error is a pipe that nobody empties.
    LogUnread,
    /// Of the receiving Postfix, in the middle of their sessions.
    SmtpdsKilled,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::Kill => "kill -9",
            Fault::Terminate => "SIGTERM",
            Fault::Hang => "SIGSTOP",
            Fault::Reload => "reload",
            Fault::BadReload => "reload of bad settings",
            Fault::Bypass => "bypass",
            Fault::Maintenance => "maintenance",
            Fault::DiskFull => "disk full",
            Fault::DiskHangs => "disk hangs",
            Fault::Clock(span) => return write!(f, "clock stepped by {span}"),
            Fault::LogUnread => "log unread",
            Fault::SmtpdsKilled => "smtpds killed",
        })
    }
}

#[derive(Clone, Copy)]
pub enum Step {
    Begins(Fault),
    Ends(Fault),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Begins(fault) => write!(f, "{fault}"),
            Step::Ends(fault) => write!(f, "over: {fault}"),
        }
    }
}

/// A lane: its faults, the seconds they last, and those between two.
struct Lane {
    faults: &'static [Fault],
    lasts: (u64, u64),
    between: (u64, u64),
}

const LANES: [Lane; 4] = [
    Lane { faults: &[Fault::Kill, Fault::Terminate, Fault::Hang], lasts: (0, 9), between: (5, 20) },
    Lane {
        faults: &[Fault::Reload, Fault::BadReload, Fault::Bypass, Fault::Maintenance],
        lasts: (2, 9),
        between: (5, 15),
    },
    Lane { faults: &[Fault::DiskFull, Fault::DiskHangs], lasts: (3, 14), between: (10, 30) },
    Lane {
        faults: &[
            Fault::Clock("+10y"),
            Fault::Clock("-70d"),
            Fault::Clock("+2h"),
            Fault::Clock("-90s"),
            Fault::LogUnread,
            Fault::LogUnread,
            Fault::SmtpdsKilled,
            Fault::SmtpdsKilled,
        ],
        lasts: (3, 12),
        between: (5, 20),
    },
];

/// What happens when, from the start of the load on; all of it is over when the time is.
pub fn drawn(seed: u64, time: Duration) -> Vec<(Duration, Step)> {
    let mut plan = Vec::new();
    for (number, lane) in LANES.iter().enumerate() {
        let mut draw = generator(seed, number as u64);
        let mut drawn = |(least, most): (u64, u64)| {
            Duration::from_millis(draw.random_range(least * 1_000..=most * 1_000))
        };
        let mut at = Duration::ZERO;
        loop {
            at += drawn(lane.between);
            let (begins, ends) = (at, at + drawn(lane.lasts));
            let which = drawn((0, 1_000)).as_millis() as usize % lane.faults.len();
            if ends > time {
                break;
            }
            let fault = lane.faults[which];
            plan.extend([(begins, Step::Begins(fault)), (ends, Step::Ends(fault))]);
            at = ends;
        }
    }
    plan.sort_by_key(|(at, _)| *at);
    plan
}

/// A generator of this run for one use, so that no use disturbs another.
pub fn generator(seed: u64, usage: u64) -> TestRng {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&usage.to_le_bytes());
    TestRng::from_seed(RngAlgorithm::ChaCha, &bytes)
}
