//! Masking keys of a WebSocket client.

use crate::types::random_bytes;

/// Keys that are drawn at once.
const KEYS: usize = 32;

/// Gives every frame a fresh key where frames are masked: an unpredictable one (RFC 6455 §10.3).
#[derive(Debug)]
pub struct Masks {
    masking: bool,
    keys: Vec<[u8; 4]>,
}

impl Masks {
    /// Clients mask, servers do not.
    pub fn new(masking: bool) -> Self {
        Self {
            masking,
            keys: Vec::new(),
        }
    }

    /// The key of the next frame.
    pub fn next_key(&mut self) -> Option<[u8; 4]> {
        if !self.masking {
            return None;
        }
        if self.keys.is_empty() {
            let random: [u8; 4 * KEYS] = random_bytes();
            let keys = random.chunks_exact(4);
            self.keys
                .extend(keys.map(|key| [key[0], key[1], key[2], key[3]]));
        }
        self.keys.pop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_never_use_a_key_again_and_servers_have_none() {
        let mut masks = Masks::new(true);
        let mut keys: Vec<_> = (0..3 * KEYS)
            .map(|_| masks.next_key().expect("a key"))
            .collect();
        keys.sort_unstable();
        keys.dedup();
        // Two of so few may be equal by chance once in ten million runs.
        assert!(keys.len() >= 3 * KEYS - 1);
        assert_eq!(Masks::new(false).next_key(), None);
    }
}
