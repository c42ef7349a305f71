//! Sums and messages in a ring: each rank sends to the next and receives from the one before
//! (Patarasuk and Yuan 2009).
//!
//! The values of a sum are cut into as many chunks as there are ranks. In the first round each
//! chunk goes once around the ring and is added up on the way, in the second round its sum goes
//! around. So each rank sends 2 (n − 1) / n of the values, whatever the number n of ranks, and a sum
//! is computed once and copied: all ranks have the same bits.

use std::ops::Range;

use half::bf16;

use super::{Collective, CollectiveError, ExchangeFormat, Rank, check_length};

/// Values that are sent at once: few enough for the processor's cache.
const BLOCK: usize = 1 << 17;

/// The connections of a rank with the rank before it and the next in the ring.
pub(super) trait Neighbors: Collective {
    /// Sends `send` to the next rank while it fills `receive` from the rank before. Either may be
    /// empty.
    fn exchange(&self, send: &[u8], receive: &mut [u8]) -> Result<(), CollectiveError>;
}

/// The rank before `rank`.
pub(super) fn previous(rank: Rank) -> usize {
    (rank.index + rank.size - 1) % rank.size
}

/// The rank after `rank`.
pub(super) fn next(rank: Rank) -> usize {
    (rank.index + 1) % rank.size
}

/// Checks that the rank before does the same operation on as many values, so that a fault of the
/// program is an error rather than wrong sums.
fn announce(ring: &impl Neighbors, operation: u64, length: u64) -> Result<u64, CollectiveError> {
    // Eight bytes each, the operation first.
    let own = u128::from(length) << 64 | u128::from(operation);
    let mut receive = [0; 16];
    ring.exchange(&own.to_le_bytes(), &mut receive)?;
    let theirs = u128::from_le_bytes(receive);
    let (theirs, length) = (theirs as u64, (theirs >> 64) as u64);
    match theirs == operation {
        true => Ok(length),
        false => Err(CollectiveError::Disagree {
            what: "the operation",
            rank: previous(ring.rank()),
            expected: operation.to_string(),
            found: theirs.to_string(),
        }),
    }
}

/// Number of a sum, and of messages, in [`announce`].
const SUM: u64 = 0x636c_6173_7053_554d;
const SUM_BF16: u64 = 0x636c_6173_7042_4631;
const MESSAGES: u64 = 0x636c_6173_704d_5347;

/// See [`super::Collective::all_reduce`].
pub(super) fn all_reduce(
    ring: &impl Neighbors,
    values: &mut [f32],
    format: ExchangeFormat,
) -> Result<(), CollectiveError> {
    let operation = match format {
        ExchangeFormat::F32 => SUM,
        ExchangeFormat::Bf16 => SUM_BF16,
    };
    let found = announce(ring, operation, values.len() as u64)?;
    let rank = ring.rank();
    if found != values.len() as u64 {
        return Err(CollectiveError::Disagree {
            what: "the number of values to add up",
            rank: previous(rank),
            expected: values.len().to_string(),
            found: found.to_string(),
        });
    }
    let chunk = |index: usize| {
        let index = index % rank.size;
        values.len() * index / rank.size..values.len() * (index + 1) / rank.size
    };
    let chunks: Vec<Range<usize>> = (0..rank.size).map(chunk).collect();
    let mut pass = Pass {
        ring,
        format,
        send: Vec::new(),
        receive: Vec::new(),
    };
    let place = |back: usize| (rank.index + 2 * rank.size - back) % rank.size;
    for step in 0..rank.size - 1 {
        let [send, receive] = [place(step), place(step + 1)].map(|at| chunks[at].clone());
        pass.run(values, send, receive, |sum, value| *sum += value)?;
    }
    // The next rank's chunk is complete here. Others get it in the format, so it is kept in it.
    if format == ExchangeFormat::Bf16 {
        for value in &mut values[chunks[next(rank)].clone()] {
            *value = bf16::from_f32(*value).to_f32();
        }
    }
    for step in 0..rank.size - 1 {
        let [send, receive] =
            [place(rank.size + step - 1), place(step)].map(|at| chunks[at].clone());
        pass.run(values, send, receive, |sum, value| *sum = value)?;
    }
    Ok(())
}

/// One step around the ring, with its buffers.
struct Pass<'a, N> {
    ring: &'a N,
    format: ExchangeFormat,
    send: Vec<u8>,
    receive: Vec<u8>,
}

impl<N: Neighbors> Pass<'_, N> {
    /// Sends a range of the values to the next rank and combines another with what the rank before
    /// sends.
    fn run(
        &mut self,
        values: &mut [f32],
        send: Range<usize>,
        receive: Range<usize>,
        combine: impl Fn(&mut f32, f32),
    ) -> Result<(), CollectiveError> {
        let blocks = send.len().max(receive.len()).div_ceil(BLOCK);
        let block = |range: &Range<usize>, index: usize| {
            let at = |index: usize| (range.start + index * BLOCK).min(range.end);
            at(index)..at(index + 1)
        };
        for index in 0..blocks {
            let out = &values[block(&send, index)];
            let into = block(&receive, index);
            let width = match self.format {
                ExchangeFormat::F32 => 4,
                ExchangeFormat::Bf16 => 2,
            };
            self.send.resize(width * out.len(), 0);
            self.receive.resize(width * into.len(), 0);
            // Chunk by chunk, which compiles to copies of many values at once.
            match self.format {
                ExchangeFormat::F32 => {
                    let bytes = self.send.as_chunks_mut::<4>().0.iter_mut();
                    bytes
                        .zip(out)
                        .for_each(|(bytes, value)| *bytes = value.to_le_bytes());
                }
                ExchangeFormat::Bf16 => {
                    let bytes = self.send.as_chunks_mut::<2>().0.iter_mut();
                    let value_bytes = |value: &f32| bf16::from_f32(*value).to_le_bytes();
                    bytes
                        .zip(out)
                        .for_each(|(bytes, value)| *bytes = value_bytes(value));
                }
            }
            self.ring.exchange(&self.send, &mut self.receive)?;
            let into = values[into].iter_mut();
            match self.format {
                ExchangeFormat::F32 => {
                    for (value, bytes) in into.zip(self.receive.as_chunks::<4>().0) {
                        combine(value, f32::from_le_bytes(*bytes));
                    }
                }
                ExchangeFormat::Bf16 => {
                    for (value, bytes) in into.zip(self.receive.as_chunks::<2>().0) {
                        combine(value, bf16::from_le_bytes(*bytes).to_f32());
                    }
                }
            }
        }
        Ok(())
    }
}

/// See [`super::Collective::all_gather`].
pub(super) fn all_gather(
    ring: &impl Neighbors,
    message: &[u8],
) -> Result<Vec<Vec<u8>>, CollectiveError> {
    let rank = ring.rank();
    let mut messages = vec![Vec::new(); rank.size];
    check_length(rank.index, message.len() as u64)?;
    messages[rank.index] = message.to_vec();
    for step in 0..rank.size - 1 {
        let place = |back: usize| (rank.index + rank.size - back) % rank.size;
        let (send, from) = (place(step), place(step + 1));
        let length = announce(ring, MESSAGES, messages[send].len() as u64)?;
        let mut received = vec![0; check_length(from, length)?];
        ring.exchange(&messages[send], &mut received)?;
        messages[from] = received;
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_to_nearest() {
        for (value, expected) in [
            (1.0, 1.0),
            (-0.0, -0.0),
            // 1 + 2⁻⁸ lies between 1 and 1 + 2⁻⁷: the even one.
            (1.0 + 1.0 / 256.0, 1.0),
            (1.0 + 3.0 / 256.0, 1.015_625),
            (f32::INFINITY, f32::INFINITY),
            (f32::MAX, f32::INFINITY),
        ] {
            let found = bf16::from_f32(value).to_f32();
            assert_eq!(found.to_bits(), f32::to_bits(expected), "{value}");
        }
        assert!(
            bf16::from_f32(f32::from_bits(0x7f80_0001))
                .to_f32()
                .is_nan()
        );
    }
}
