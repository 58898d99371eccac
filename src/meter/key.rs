//! Keys of tables: what is counted under, in sixteen bytes.
//!
//! SipHash-1-3 with 128 bits under a secret of this host. Nobody outside can aim at a key of
//! somebody else, a table holds no addresses, and two keys meet by chance with a probability of
//! 2^-64 only once there are some four thousand million of them.

use siphasher::sip128::{Hasher128, SipHasher13};
use std::hash::Hasher;

/// The name of one entry in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key([u64; 2]);

impl Key {
    /// The key of both, in this order. Keys are as good as random, so two such pairs meet by
    /// chance as rarely as two keys do; the turn keeps a part that stands there twice from
    /// cancelling itself.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self([self.0[0].rotate_left(29) ^ other.0[0], self.0[1].rotate_left(29) ^ other.0[1]])
    }

    /// Half of it, where sixty-four bits are enough.
    pub fn to_u64(self) -> u64 {
        self.0[0]
    }

    /// The bytes it is written down as. Keys are as good as random, so these are evenly spread.
    pub fn to_bytes(self) -> [u8; 16] {
        (u128::from(self.0[0]) << 64 | u128::from(self.0[1])).to_be_bytes()
    }

    /// The key that was written down as these bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let number = u128::from_be_bytes(bytes);
        Self([(number >> 64) as u64, number as u64])
    }

    /// A hash for a hash table: a key is one already.
    pub(super) fn hash(self) -> u64 {
        self.0[0]
    }

    /// Which of so many equal parts it belongs to, by the half that is not the hash.
    pub(super) fn place_in(self, parts: usize) -> usize {
        ((u128::from(self.0[1]) * parts as u128) >> 64) as usize
    }
}

/// The secret that keys are made with. Sixteen bytes from the system's random numbers.
#[derive(Clone)]
pub struct Secret([u8; 16]);

impl Secret {
    /// A secret of these bytes.
    pub fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes, for who keeps it.
    pub fn to_bytes(&self) -> [u8; 16] {
        self.0
    }

    /// Begins a key. The `purpose` keeps keys of different uses apart.
    pub fn key(&self, purpose: &str) -> KeyMaker {
        KeyMaker(SipHasher13::new_with_key(&self.0)).part(purpose.as_bytes())
    }
}

/// A key in the making.
#[derive(Clone)]
pub struct KeyMaker(SipHasher13);

impl KeyMaker {
    /// Adds a part. Its length goes in as well, so that no two lists of parts look the same.
    #[must_use]
    pub fn part(mut self, bytes: &[u8]) -> Self {
        self.0.write_u64(bytes.len() as u64);
        self.0.write(bytes);
        self
    }

    /// The finished key.
    pub fn finish(self) -> Key {
        let hash = self.0.finish128();
        Key([hash.h1, hash.h2])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boundary_between_parts_makes_a_difference() {
        let secret = Secret::new([7; 16]);
        let key = |a: &str, b: &str| secret.key("x").part(a.as_bytes()).part(b.as_bytes()).finish();
        assert_eq!(key("ab", "c"), key("ab", "c"));
        assert_ne!(key("ab", "c"), key("a", "bc"));
        assert_ne!(key("ab", "c"), Secret::new([8; 16]).key("x").part(b"ab").part(b"c").finish());
    }

    #[test]
    fn keys_of_several_parts_differ_by_each_and_by_their_order() {
        let secret = Secret::new([7; 16]);
        let [a, b, c] = ["a", "b", "c"].map(|part| secret.key(part).finish());
        let all = [
            a,
            b,
            a.with(b),
            b.with(a),
            a.with(a),
            b.with(b),
            c.with(a).with(a),
            c.with(b).with(b),
        ];
        for (n, key) in all.iter().enumerate() {
            assert!(!all[..n].contains(key));
        }
    }
}
