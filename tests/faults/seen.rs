//! What is seen of the daemon in a run: how often it was started, what it uses, and what it
//! complains of.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;

/// What may be in use beside what the first daemon had when it was idle. Tables, tasks and buffers
/// stay at the size they once had, and the store keeps some of its files open.
const MORE_MEMORY: u64 = 64 << 20;
const MORE_DESCRIPTORS: usize = 8;
/// And what may be in use for a while, with an unread log and a full disk.
const MORE_AT_MOST: u64 = 128 << 20;

/// What the summary says of the daemon.
#[derive(Default)]
pub struct Seen {
    pub starts: u32,
    pub most: Usage,
    pub idle: Usage,
    pub at_the_end: Usage,
    /// The log's lines of level WARN and ERROR, without what varies, and how often.
    pub complaints: BTreeMap<String, u32>,
    /// How commands of an administrator ended.
    pub commands: BTreeMap<String, u32>,
}

#[derive(Clone, Copy, Default)]
pub struct Usage {
    pub memory: u64,
    pub descriptors: usize,
}

impl Seen {
    pub fn most_descriptors(&self) -> usize {
        self.idle.descriptors + MORE_DESCRIPTORS
    }

    pub fn most_memory(&self) -> u64 {
        self.idle.memory + MORE_MEMORY
    }

    /// Nothing has grown.
    pub fn is_within_bounds(&self) {
        let now = self.at_the_end;
        assert!(now.memory <= self.most_memory(), "memory: {} at first, {now}", self.idle);
        let most = self.most;
        assert!(most.memory <= self.idle.memory + MORE_AT_MOST, "memory: {}, {most}", self.idle);
    }

    pub fn heard(&mut self, lines: &[String]) {
        for line in lines {
            assert!(!line.contains("panicked"), "{line}");
            let mut words = line.split_whitespace().skip(1);
            if let Some("WARN" | "ERROR") = words.next() {
                let text: String = line.splitn(3, ' ').skip(1).collect::<Vec<_>>().join(" ");
                let text = text.chars().map(|c| if c.is_ascii_digit() { 'n' } else { c });
                *self.complaints.entry(text.take(100).collect()).or_default() += 1;
            }
        }
    }
}

impl Usage {
    /// None when the process has ended.
    pub fn of(pid: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kibibytes = resident.trim().strip_suffix(" kB")?.parse::<u64>().ok()?;
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
        Some(Self { memory: kibibytes << 10, descriptors })
    }

    pub fn or_more(self, other: Self) -> Self {
        Self {
            memory: self.memory.max(other.memory),
            descriptors: self.descriptors.max(other.descriptors),
        }
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB, {} descriptors", self.memory >> 20, self.descriptors)
    }
}
