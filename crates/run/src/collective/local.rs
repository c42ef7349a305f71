//! A process alone.

use super::{Collective, CollectiveError, ExchangeFormat, Rank};

/// A process that trains alone: sums are its own values.
#[derive(Clone, Copy, Debug, Default)]
pub struct Local;

impl Collective for Local {
    fn rank(&self) -> Rank {
        Rank::ALONE
    }

    fn all_reduce(&self, _: &mut [f32], _: ExchangeFormat) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn all_gather(&self, message: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        Ok(vec![message.to_vec()])
    }
}
