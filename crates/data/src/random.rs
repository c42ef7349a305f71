//! Random generators seeded by their purpose, independent of threads and order.

use rand::SeedableRng;
use sha2::{Digest, Sha256};

/// The generator of all random draws: small, fast, the same on every machine.
pub type Rng = rand_chacha::ChaCha8Rng;

/// The generator for one purpose: the same (seed, epoch, key) always gives the same draws.
///
/// `key` names the purpose, such as an image's key or `"order"`. The three are hashed rather than
/// added up, so that seed 1 of epoch 2 is independent of seed 2 of epoch 1.
pub fn rng_for(seed: u64, epoch: u64, key: &str) -> Rng {
    let digest = Sha256::new()
        .chain_update(b"clasp generator 1")
        .chain_update(seed.to_le_bytes())
        .chain_update(epoch.to_le_bytes())
        .chain_update(key.as_bytes())
        .finalize();
    Rng::from_seed(digest.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng as _;

    fn first(seed: u64, epoch: u64, key: &str) -> u64 {
        rng_for(seed, epoch, key).next_u64()
    }

    #[test]
    fn same_purpose_same_draws() {
        assert_eq!(first(1, 2, "a/b"), first(1, 2, "a/b"));
    }

    #[test]
    fn another_seed_epoch_or_key_gives_other_draws() {
        let draws = [
            first(1, 2, "a"),
            first(2, 1, "a"),
            first(1, 2, "b"),
            first(1, 3, "a"),
        ];
        for (i, a) in draws.iter().enumerate() {
            assert!(draws[i + 1..].iter().all(|b| a != b));
        }
    }
}
