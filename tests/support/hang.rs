//! Makes what the daemon waits for hang, as a dead disk does: `strace` holds the system calls that are
//! named before they begin, and whoever makes one stands still.

use super::{as_root, wait_until};
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// Something that hangs while this is held.
pub struct Hanging {
    strace: Child,
    id: u32,
}

impl Hanging {
    /// All threads of a process, at these system calls.
    pub fn process(pid: u32, calls: &str) -> Self {
        Self::strace(&["-f"], pid, calls)
    }

    /// The same for calls that concern this path.
    pub fn at_path(pid: u32, path: &str, calls: &str) -> Self {
        Self::strace(&["-f", "-P", path], pid, calls)
    }

    /// One thread, at whatever it does next.
    pub fn thread(tid: u32) -> Self {
        Self::strace(&[], tid, "all")
    }

    fn strace(more: &[&str], id: u32, calls: &str) -> Self {
        as_root(); // who else may trace depends on the host
        let mut strace =
            Command::new("setpriv") // so that it ends even when we are killed
                .args(["--pdeathsig", "KILL", "--", "strace", "-o", "/dev/null"])
                .args(more)
                .args(["-e", &format!("inject={calls}:delay_enter=3000s"), "-p", &id.to_string()])
                .stderr(Stdio::piped())
                .spawn()
                .expect("setpriv (util-linux) starts strace");
        let mut said = BufReader::new(strace.stderr.take().unwrap()).lines();
        let attached = said.find(|line| line.as_ref().is_ok_and(|line| line.contains("attached")));
        assert!(attached.is_some(), "strace attaches to {id}: apt-get install strace");
        // It says more, and must not be kept waiting.
        std::thread::spawn(move || said.for_each(drop));
        Self { strace, id }
    }

    /// Waits until the process has ended but for what hangs, which `strace` keeps, and lets go.
    pub fn until_the_end(self, pid: u32) {
        let is_over = |tid: &str| {
            let status = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status"));
            status.is_ok_and(|status| status.contains("State:\tZ"))
        };
        wait_until("the process to end but for what hangs", || {
            let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Some(()) };
            let tasks = tasks.filter_map(|task| task.ok()?.file_name().into_string().ok());
            let mut others = tasks.filter(|tid| *tid != self.id.to_string());
            let over = is_over(&pid.to_string()) || others.all(|tid| is_over(&tid));
            over.then_some(())
        });
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}
