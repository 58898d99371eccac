//! A real Postfix with the daemon before it, for ten minutes under mixed load, with random faults:
//! at the end every message has been delivered once, or is deferred with a reason. It runs when
//! asked for: `make test-faults SEED=7 TIME=600`. A seed gives the same faults at the same times;
//! what they meet is the machine's.

#![allow(clippy::print_stdout, reason = "the run is told as it goes")]
#![allow(unreachable_pub, reason = "nothing outside a test could reach it")]

mod support;

#[path = "faults/ledger.rs"]
mod ledger;
#[path = "faults/load.rs"]
mod load;
#[path = "faults/plan.rs"]
mod plan;
#[path = "faults/seen.rs"]
mod seen;
#[path = "faults/site.rs"]
mod site;

use std::collections::BTreeMap;
use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ledger::Account;
use load::Sent;
use plan::{Fault, Step};
use seen::Seen;
use site::Site;
use support::disk::Disk;
use support::postfix::Postfix;
use support::{as_root, stopwatch};

/// Set in the mount namespace of the run.
const APART: &str = "POSTPONE_TEST_APART";
/// The queue may bring no mail for so long, once the faults are over, until what waits is counted; and
/// then, with everything let pass.
const STANDSTILL: Duration = Duration::from_secs(40);
/// The longest time for what waits by rights to be let in, before everything is let pass.
const DRAIN: Duration = Duration::from_secs(120);
/// Visitors without a queue at the same time.
const VISITORS: u8 = 3;

fn main() {
    as_root();
    if env::var_os(APART).is_none() {
        let program = env::current_exe().expect("Linux tells it");
        let mut again = Command::new("unshare");
        again.args(["--mount", "--"]).arg(program).args(env::args_os().skip(1)).env(APART, "1");
        panic!("unshare (util-linux): {}", again.exec());
    }
    let seed = argument("--seed").unwrap_or_else(|| u64::from(std::process::id()));
    let time = Duration::from_secs(argument("--time").unwrap_or(600));
    println!("seed {seed}, {} seconds of load and faults", time.as_secs());
    run(seed, time);
}

/// The number after this word of the command line.
fn argument(name: &str) -> Option<u64> {
    let value = env::args().skip_while(|word| word != name).nth(1)?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}: not a number: {value}")))
}

#[allow(clippy::disallowed_methods, reason = "a load has a rate, and a fault a length")]
fn pause(span: Duration) {
    thread::sleep(span);
}

fn run(seed: u64, time: Duration) {
    let disk = Disk::mounted();
    let mut site = Site::open(&disk);
    let sender = load::sender(&site.mx).start();
    let (mx, submission, over) = (site.mx.smtp, sender.smtp, AtomicBool::new(false));
    let plan = plan::drawn(seed, time);
    let sent: Vec<Sent> = thread::scope(|scope| {
        let visitors: Vec<_> = (0..VISITORS)
            .map(|number| (number, &over))
            .map(|(number, over)| scope.spawn(move || load::visits(seed, number, mx, over)))
            .collect();
        let queue = scope.spawn(|| load::queue(seed, submission, &over));
        let faults = Over(&over);
        play(&mut site, &plan, time);
        drop(faults);
        let joined = visitors.into_iter().chain([queue]).map(|load| load.join());
        joined.flat_map(|sent| sent.expect("the load goes on to its end")).collect()
    });
    site.recovers();
    let at_the_end = drained(&sent, &sender, &site.mx, DRAIN);
    site.lets_everything_pass();
    let after = drained(&sent, &sender, &site.mx, Duration::MAX);
    let seen = site.close();
    summary(seed, &plan, &at_the_end, &after, &seen);
    seen.is_within_bounds();
    assert!(after.wrong.is_empty(), "see above");
    assert_eq!(after.waiting(), 0, "everything is let pass, and something still waits");
}

/// Ends the load, also when a fault could not be played.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Lets happen what the plan says, when it says so.
fn play(site: &mut Site<'_>, plan: &[(Duration, Step)], time: Duration) {
    let (passed, mut plan) = (stopwatch(), plan.iter().peekable());
    while passed() < time {
        while let Some((at, step)) = plan.next_if(|(at, _)| *at <= passed()) {
            println!("{:>5}s {step}", at.as_secs());
            site.take(*step);
        }
        site.look();
        pause(Duration::from_millis(50));
    }
    // What was delayed is over too.
    plan.for_each(|(_, step)| site.take(*step));
}

/// The account when nothing waits any more, or nothing more comes, or after this time.
fn drained(sent: &[Sent], sender: &Postfix, mx: &Postfix, most: Duration) -> Account {
    let passed = stopwatch();
    let (mut best, mut since) = (0, Duration::ZERO);
    loop {
        let account = Account::of(sent, sender, mx);
        if account.delivered > best {
            (best, since) = (account.delivered, passed());
        }
        // Mail that was taken may be on its way to the mailbox.
        let is_over = account.waiting() == 0 && account.wrong.is_empty();
        if is_over || passed() > most || passed() - since > STANDSTILL {
            return account;
        }
        println!("{} delivered, {} wait", account.delivered, account.waiting());
        pause(Duration::from_secs(5));
    }
}

fn summary(
    seed: u64,
    plan: &[(Duration, Step)],
    at_the_end: &Account,
    after: &Account,
    seen: &Seen,
) {
    let mut kinds: BTreeMap<Fault, usize> = BTreeMap::new();
    for (_, step) in plan {
        if let Step::Begins(fault) = step {
            *kinds.entry(*fault).or_default() += 1;
        }
    }
    println!("\nseed {seed}: {} messages, {} recipients", after.messages, after.recipients);
    println!("  delivered {}, after a drain with all rules", at_the_end.delivered);
    for (reason, count) in &at_the_end.deferred {
        println!("  deferred {count}: {reason}");
    }
    println!("  delivered {}, after everything was let pass", after.delivered);
    println!("  refused {} of clients without a queue", after.refused);
    let (taken, not) = after.unknown;
    println!("  no reply to the dot for {} of them: {taken} taken, {not} not", taken + not);
    println!("  twice {}, each after a reply to the dot that was lost", after.twice);
    for (fault, count) in kinds {
        println!("  fault {count} x {fault}");
    }
    println!("  daemon started {} times", seen.starts);
    println!("  idle at first: {}", seen.idle);
    println!("  most:          {}", seen.most);
    println!("  idle at last:  {}", seen.at_the_end);
    for (ended, count) in &seen.commands {
        println!("  ctl {count} x {ended}");
    }
    for (complaint, count) in &seen.complaints {
        println!("  log {count} x {complaint}");
    }
    for wrong in after.wrong.iter().take(50) {
        println!("  WRONG {wrong}");
    }
}
