//! Ranks that are threads of one process, such as one for each of its GPUs.

use std::panic::resume_unwind;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::{Collective, CollectiveError, ExchangeFormat, Rank, check_length};

/// A rank that is a thread of this process. Dropping it ends the others, as the end of a process does.
///
/// Nothing is sent: a rank adds up its chunk of the values of all ranks where they are, in the order
/// of the ranks, and the others copy the sum. So the bits do not depend on which thread comes first,
/// and sums are in f32 whatever the format.
#[derive(Debug)]
pub struct ThreadRank {
    rank: Rank,
    shared: Arc<Shared>,
}

/// What the ranks share: each stores a contribution, and once all have, each reads all of them.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The contribution of each rank.
    contributions: Vec<Option<Contribution>>,
    /// Number of ranks that have read all of them. There are no new ones before all ranks have.
    readers: usize,
    /// A rank that has ended.
    ended: Option<usize>,
}

/// What a rank gives in an operation.
#[derive(Clone, Debug)]
enum Contribution {
    Values(Arc<Vec<f32>>),
    /// The sum of a chunk of the values.
    Sum(Arc<Vec<f32>>),
    Message(Vec<u8>),
}

impl Contribution {
    /// The operation, for errors.
    fn what(&self) -> String {
        match self {
            Self::Values(values) => format!("a sum of {} values", values.len()),
            Self::Sum(_) => "the sum of a chunk".to_owned(),
            Self::Message(_) => "a message".to_owned(),
        }
    }
}

impl ThreadRank {
    /// The ranks of `size` threads, in order.
    ///
    /// # Errors
    /// There are none, or too many.
    pub fn all(size: usize) -> Result<Vec<Self>, CollectiveError> {
        Rank::new(0, size)?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                contributions: vec![None; size],
                ..State::default()
            }),
            changed: Condvar::new(),
        });
        (0..size)
            .map(|index| {
                Ok(Self {
                    rank: Rank::new(index, size)?,
                    shared: Arc::clone(&shared),
                })
            })
            .collect()
    }

    /// What `work` returns on each of `size` ranks, each on a thread of its own; in order.
    ///
    /// # Errors
    /// See [`Self::all`].
    ///
    /// # Panics
    /// When `work` does on a rank.
    pub fn on_each<R: Send>(
        size: usize,
        work: impl Fn(Self) -> R + Sync,
    ) -> Result<Vec<R>, CollectiveError> {
        let (ranks, work) = (Self::all(size)?, &work);
        Ok(thread::scope(|scope| {
            let threads: Vec<_> = { ranks.into_iter() }
                .map(|rank| scope.spawn(move || work(rank)))
                .collect();
            { threads.into_iter() }
                .map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
                .collect()
        }))
    }

    /// Waits until `is_ready`, or a rank has ended.
    fn wait<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        is_ready: impl Fn(&State) -> bool,
    ) -> Result<MutexGuard<'a, State>, CollectiveError> {
        while !is_ready(&state) {
            if let Some(peer) = state.ended {
                return Err(CollectiveError::Lost {
                    rank: self.rank.index,
                    peer,
                    reason: "its thread has ended".to_owned(),
                });
            }
            let waited = self.shared.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        Ok(state)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let state = self.shared.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }

    /// The contributions of all ranks, in their order.
    fn exchange(&self, own: Contribution) -> Result<Vec<Contribution>, CollectiveError> {
        // Until all have read those before.
        let mut state = self.wait(self.state(), |state| {
            state.contributions[self.rank.index].is_none()
        })?;
        state.contributions[self.rank.index] = Some(own);
        self.shared.changed.notify_all();
        let mut state = self.wait(state, |state| {
            state.contributions.iter().all(Option::is_some)
        })?;
        let all: Vec<Contribution> = state.contributions.iter().flatten().cloned().collect();
        state.readers += 1;
        if state.readers == self.rank.size {
            state.readers = 0;
            state.contributions.fill(None);
            self.shared.changed.notify_all();
        }
        Ok(all)
    }

    /// An error that names the first rank that does something else than rank 0.
    fn disagreement(&self, all: &[Contribution]) -> CollectiveError {
        let whats: Vec<String> = all.iter().map(Contribution::what).collect();
        let rank = whats.iter().position(|what| *what != whats[0]);
        let rank = rank.unwrap_or(self.rank.index);
        CollectiveError::Disagree {
            what: "the operation",
            rank,
            expected: whats[0].clone(),
            found: whats[rank].clone(),
        }
    }
}

impl Drop for ThreadRank {
    fn drop(&mut self) {
        self.state().ended.get_or_insert(self.rank.index);
        self.shared.changed.notify_all();
    }
}

impl Collective for ThreadRank {
    fn rank(&self) -> Rank {
        self.rank
    }

    fn all_reduce(&self, values: &mut [f32], _: ExchangeFormat) -> Result<(), CollectiveError> {
        let all = self.exchange(Contribution::Values(Arc::new(values.to_vec())))?;
        let lengths = all.iter().map(|one| match one {
            Contribution::Values(theirs) => Some(theirs.len()),
            _ => None,
        });
        if !lengths.clone().all(|length| length == Some(values.len())) {
            return Err(self.disagreement(&all));
        }
        let at = |index: usize| values.len() * index / self.rank.size;
        let own = at(self.rank.index)..at(self.rank.index + 1);
        let mut sum = vec![0.0; own.len()];
        for theirs in &all {
            if let Contribution::Values(theirs) = theirs {
                let theirs = &theirs[own.clone()];
                sum.iter_mut()
                    .zip(theirs)
                    .for_each(|(sum, value)| *sum += value);
            }
        }
        drop(all);
        let sums = self.exchange(Contribution::Sum(Arc::new(sum)))?;
        let mut rest = values;
        for sum in &sums {
            let Contribution::Sum(sum) = sum else {
                return Err(self.disagreement(&sums));
            };
            let (chunk, others) = rest.split_at_mut(sum.len());
            chunk.copy_from_slice(sum);
            rest = others;
        }
        Ok(())
    }

    fn all_gather(&self, message: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        check_length(self.rank.index, message.len() as u64)?;
        let all = self.exchange(Contribution::Message(message.to_vec()))?;
        { all.iter() }
            .map(|one| match one {
                Contribution::Message(message) => Ok(message.clone()),
                _ => Err(self.disagreement(&all)),
            })
            .collect()
    }
}
