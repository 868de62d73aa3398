//! The entropy source (Virtual I/O Device 1.3, section 5.4): fills each buffer from the host's generator.

use super::chain::Chain;
use super::line::Line;
use super::ring::Ring;
use super::{Broken, Device};
use hv_abi::device::kind;

/// The most bytes for one request: a guest that wants more asks again, and holds nobody up.
const MOST: usize = 64 << 10;

pub(super) struct Entropy;

impl Device for Entropy {
    fn kind(&self) -> u32 {
        kind::ENTROPY
    }

    fn queues(&self) -> &'static [u16] {
        &[64]
    }

    fn process(&mut self, rings: &mut [Option<Ring>], _: &Line, _: bool) -> Result<bool, Broken> {
        let Some(ring) = &mut rings[0] else { return Ok(false) };
        let Some(mut chain) = ring.pop()? else { return Ok(false) };
        if chain.writable() == 0 {
            return Err(Broken("a buffer for entropy cannot be written to"));
        }
        fill(&mut chain);
        ring.push(chain);
        Ok(true)
    }
}

fn fill(chain: &mut Chain) {
    let mut bytes = [0; 256]; // so many are never cut short
    for _ in 0..MOST / bytes.len() {
        let length = chain.writable().min(bytes.len());
        let filled = rustix::rand::getrandom(&mut bytes[..length], rustix::rand::GetRandomFlags::empty());
        let filled = filled.unwrap_or(0); // interrupted: fewer is allowed, and the guest asks again
        if filled == 0 || chain.write(&bytes[..filled]).is_err() {
            break;
        }
    }
}
