//! A conversation without a socket, for `fuzz/`.

use std::sync::{Arc, Mutex};

use super::talk::{Heard, House, Talk};
use crate::engine::{Door, Engine};

/// What an MTA was answered.
#[derive(Debug, Default)]
pub struct Overheard {
    /// Every answer, as frames.
    pub said: Vec<u8>,
    /// What no MTA sends, if that ended it.
    pub nonsense: Option<String>,
    /// The most bytes of half a frame that were kept.
    pub most_kept: usize,
    /// The most bytes of answers that waited to be written.
    pub most_unsaid: usize,
}

/// Hears an MTA whose bytes come in these pieces.
pub fn overheard(engine: &Arc<Engine>, door: Door, pieces: &[&[u8]]) -> Overheard {
    let house = House { engine: engine.clone(), door, called: Mutex::default() };
    let mut talk = Talk::new(Arc::new(house));
    let (mut heard, mut rest, mut out) = (Overheard::default(), Vec::new(), Vec::new());
    for piece in pieces {
        rest.extend_from_slice(piece);
        let mut came = &rest[..];
        loop {
            let end = talk.hear(&mut came, &mut out);
            heard.most_unsaid = heard.most_unsaid.max(out.len());
            heard.said.append(&mut out);
            match end {
                Heard::All => break,
                Heard::Enough => {}
                Heard::TheEnd => return heard,
                Heard::Nonsense(nonsense) => {
                    heard.nonsense = Some(nonsense.to_string());
                    return heard;
                }
            }
        }
        heard.most_kept = heard.most_kept.max(came.len());
        rest = came.to_vec();
    }
    heard
}
