//! The system's randomness behind the trait that `protocol` takes as an argument.
//!
//! Called wherever a shell hands an rng to a pure core. Never keeps state of its own: a process that
//! was forked or restored cannot repeat itself.

use std::convert::Infallible;

use getrandom::SysRng;
use rand_core::{TryCryptoRng, TryRng};

/// Randomness of the operating system. Implements `rand_core::CryptoRng`.
///
/// # Panics
/// When the operating system refuses randomness: no key may be made then, and nothing can go on.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemRandom;

/// Linux gives randomness from early boot on and never takes it away again.
const REFUSED: &str = "the operating system gives randomness";

impl TryRng for SystemRandom {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(SysRng.try_next_u32().expect(REFUSED))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(SysRng.try_next_u64().expect(REFUSED))
    }

    fn try_fill_bytes(&mut self, destination: &mut [u8]) -> Result<(), Infallible> {
        SysRng.try_fill_bytes(destination).expect(REFUSED);
        Ok(())
    }
}

impl TryCryptoRng for SystemRandom {}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::CryptoRng;

    #[test]
    fn fills_as_a_trait_object_and_does_not_repeat() {
        let rng: &mut dyn CryptoRng = &mut SystemRandom;
        let (mut first, mut second) = ([0u8; 32], [0u8; 32]);
        rng.fill_bytes(&mut first);
        rng.fill_bytes(&mut second);
        assert_ne!(first, second);
        assert_ne!(first, [0; 32]);
    }
}
