//! `postpone` rate-limits and greylists inbound SMTP, as a milter for Postfix and Sendmail and as a
//! policy service for Postfix. Every refusal is temporary, and states its reason and the time to retry.
//!
//! # The way of an event
//!
//! ```text
//! bytes ─ front ─▶ Event                                  what happened, as a value
//!                    │  engine: now = clock.now(), once
//!   policy.assess    │  access ▸ maintenance ▸ load ▸ limits ▸ greylist ▸ behaviour   reads only
//!                    ▼
//!                Decision { action, reasons, wait, shadowed }
//!   policy.settle    │                                     the only writer
//!                    │  telemetry: one line, one counter
//! bytes ◀─ front ─ Answer                                  text is made here, last
//! ```
//!
//! From event to answer everything is synchronous and knows no socket, no file and no clock. What
//! happens beside that path (forgetting what has faded, metrics, reading settings again, sensors of
//! the load, the control socket, what is kept on disk) happens on other threads.
//!
//! # The modules, lowest first
//!
//! A module uses only those above it in this list; `tests/layers.rs` holds it.
//!
//! 1. [`clock`]: the time, and the only reader of the system's. [`setting`]: values as an
//!    administrator writes them. [`exit`]: how a program ends.
//! 2. [`smtp`]: the words of mail, values only; a [`smtp::reply::Reply`] cannot be wrong.
//!    [`meter`]: the arithmetic of limits, which knows nothing of mail; keyed memory with a bound.
//! 3. [`policy`]: the signals, one file each, that assess an event and settle.
//! 4. [`telemetry`]: every metric, label and log field, once.
//! 5. [`engine`]: the seam of all these, and the [`engine::Session`] that a front holds.
//! 6. [`store`]: memory that outlives the process, written behind by a thread of its own. [`front`]:
//!    protocols: the milter, Postfix's policy service, metrics over HTTP, the control socket.
//! 7. [`config`]: the sum of every part's parameters.
//! 8. [`daemon`], [`tool`]: what the binary's subcommands do.
//!
//! # What always holds
//!
//! - No mail is lost by us: only temporary refusals can be built, and in our own trouble the event
//!   passes, is counted, and is told once in a while ([`engine::Engine::failed`]).
//! - Nothing is charged before the decision is known, and what a session has taken is given back
//!   when it is dropped.
//! - A recipient is who it is, not how it is spelled: [`smtp::address::Address`] is one text for one
//!   mailbox, and says where mail to it goes, as far as can be known
//!   ([`smtp::address::Destination`]). Where it cannot, what any domain asks is asked of it, and what
//!   any is spared is not spared ([`policy::recipients`]).
//! - A moment that was stored is worth no more than its own span, as seen from now
//!   ([`meter::record::Record::seen_from`], which a table asks at every look): a clock that was ahead
//!   locks nobody out. While the wall clock has jumped, nothing fades ([`clock::Moment`]).
//! - Nothing a client sends makes memory grow beyond a stated bound; each bound's documentation
//!   says what is dropped.
//! - A session keeps the policy it began with; a reload concerns those that follow.
//! - What the daemon does not need to serve is given up before it serves: capabilities, new
//!   privileges, writing anywhere; only the threads that open and keep state write in its folder.
//! - Text a client chose reaches logs and replies cut, and without control characters.
//!
//! # Where it differs from the first design
//!
//! - All limits are one signal, since a client that is exempt, a shadow, and what a message must
//!   be given back concern them together. `Assessment` is therefore not returned but gathered in a
//!   [`policy::signal::Round`].
//! - A session that is refused at its beginning is a sentence that the engine holds and the client
//!   hears later; it is logged when the client hears it, or when it has gone without hearing it.
//! - Beside a milter the policy service leaves limits to it: only the milter knows what it has
//!   charged a message already. Greylisting and access answer in both.
//! - A table is shards of our own over `hashbrown`, not a dashmap: to drop the least worthy of a few
//!   entries, and to sweep a part of a table, takes buckets that can be looked at by their number.
//! - The state of limits is kept as absolute times and so may be older than a crash; what is read
//!   back is joined with what has changed meanwhile by [`meter::record::Stored::fold`], for which
//!   neither order nor repetition matters.
//! - Who has written to whom is kept beside the triplets in a table of its own: pairs are made by
//!   single messages, and would push out what waits. What becomes of deferrals is kept by mail
//!   system where it has a name, since another of its hosts may bring the retry.
//! - Behaviour is the last to settle, since it takes in what greylisting has seen; it is asked
//!   through [`policy::signal::Context::score`] by whoever needs it, once an event.
//! - The milter front has a session loop of its own instead of indymilter's. That one is two tasks,
//!   channels, a boxed future and a two-hour timer a frame: an empty filter over it costs 156,000
//!   instructions a session of one message and 19 kB while it is open, ours 50,000 without rules and
//!   71,000 with all of them, and 3 kB (`benches/milter.rs`). By time our loop without rules serves 1.35
//!   times as many sessions at 0.75 of the processor's time; the rules, which look into cold tables,
//!   take all of that again. One peer's macros took 134 MiB there, a peer that did not read
//!   held the end of the daemon for two hours, and neither could be mended from outside.
//!   indymilter's types stay the vocabulary, and a filter over its loop is what
//!   `tests/milter_oracle.rs` holds ours against.
//! - A connection is registered with tokio for both ways, though it waits for one: to hear of what
//!   comes only was tried, and brought nothing that could be measured.
//! - Log lines go to standard error through a bounded queue, also under systemd: journald's own
//!   protocol would make the mail path wait for a journal that is stuck.
//! - Manual pages are written by `packaging/pages`, which takes settings, log fields and what to do at
//!   night from where they stand already; packages are made by Debian's and Red Hat's own tools, which
//!   know what a unit and a conffile are.
//!
//! # What is deliberately absent
//!
//! Permanent refusals, content filtering, DNS look-ups, and any wait for disk or network on the
//! way from event to answer.

pub mod clock;
pub mod config;
pub mod daemon;
pub mod engine;
pub mod exit;
pub mod front;
pub mod meter;
pub mod policy;
pub mod setting;
pub mod smtp;
pub mod store;
pub mod telemetry;
pub mod tool;
