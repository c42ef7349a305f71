//! The processes of `mpiexec`.

use std::fmt;

use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::datatype::PartitionMut;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives};

use super::ring::{self, Neighbors};
use super::{Collective, CollectiveError, ExchangeFormat, Rank, check_length};

/// Values of one call: MPI counts with 32 bits.
const AT_ONCE: usize = 1 << 28;

/// A rank of `MPI_COMM_WORLD`. Where MPI itself fails it ends the program, and the launcher ends the
/// other ranks. Dropping it finalizes MPI.
pub struct MpiWorld {
    rank: Rank,
    world: SimpleCommunicator,
    _universe: Universe,
}

impl fmt::Debug for MpiWorld {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        { formatter.debug_struct("MpiWorld") }
            .field("rank", &self.rank)
            .finish_non_exhaustive()
    }
}

impl MpiWorld {
    /// Initializes MPI, once in a process.
    ///
    /// # Errors
    /// It was initialized before, or allows calls of one thread only.
    pub fn initialize() -> Result<Self, CollectiveError> {
        let failed = |reason: &str| CollectiveError::Mpi(reason.to_owned());
        let (universe, threading) = mpi::initialize_with_threading(Threading::Serialized)
            .ok_or_else(|| failed("it is initialized already"))?;
        if threading < Threading::Serialized {
            return Err(failed(
                "the library allows calls from the first thread only",
            ));
        }
        let world = universe.world();
        let number = |count: i32| usize::try_from(count).unwrap_or(0);
        Ok(Self {
            rank: Rank::new(number(world.rank()), number(world.size()))?,
            world,
            _universe: universe,
        })
    }

    /// Ends all ranks with this exit status: a rank that fails must not leave the others waiting.
    pub fn abort(&self, status: i32) -> ! {
        self.world.abort(status)
    }
}

impl Drop for MpiWorld {
    fn drop(&mut self) {
        // MPI would wait for the other ranks, and they for this one.
        if std::thread::panicking() {
            self.abort(101);
        }
    }
}

impl Neighbors for MpiWorld {
    fn exchange(&self, send: &[u8], receive: &mut [u8]) -> Result<(), CollectiveError> {
        let process = |index: usize| self.world.process_at_rank(index as i32);
        let [next, previous] = [ring::next(self.rank), ring::previous(self.rank)].map(process);
        mpi::point_to_point::send_receive_into(send, &next, receive, &previous);
        Ok(())
    }
}

impl Collective for MpiWorld {
    fn rank(&self) -> Rank {
        self.rank
    }

    fn all_reduce(
        &self,
        values: &mut [f32],
        format: ExchangeFormat,
    ) -> Result<(), CollectiveError> {
        if format == ExchangeFormat::Bf16 {
            // MPI has no such type.
            return ring::all_reduce(self, values, format);
        }
        let mut own = Vec::new();
        for values in values.chunks_mut(AT_ONCE) {
            own.clear();
            own.extend_from_slice(values);
            { &self.world }.all_reduce_into(&own[..], values, SystemOperation::sum());
        }
        Ok(())
    }

    fn all_gather(&self, message: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        check_length(self.rank.index, message.len() as u64)?;
        let mut lengths = vec![0_u64; self.rank.size];
        { &self.world }.all_gather_into(&(message.len() as u64), &mut lengths[..]);
        let lengths: Vec<usize> = { lengths.into_iter().enumerate() }
            .map(|(rank, length)| check_length(rank, length))
            .collect::<Result<_, _>>()?;
        let total: usize = lengths.iter().sum();
        let counts: Vec<i32> = lengths.iter().map(|length| *length as i32).collect();
        let starts: Vec<i32> = { counts.iter() }
            .scan(0_i32, |next, count| {
                let start = *next;
                *next = start.checked_add(*count)?;
                Some(start)
            })
            .collect();
        if starts.len() < counts.len() {
            return Err(CollectiveError::TooLong {
                rank: self.rank.index,
                length: total as u64,
            });
        }
        let mut all = vec![0_u8; total];
        let mut parts = PartitionMut::new(&mut all[..], counts, &starts[..]);
        { &self.world }.all_gather_varcount_into(message, &mut parts);
        let mut rest = &all[..];
        let messages = lengths.into_iter().map(|length| {
            let (message, others) = rest.split_at(length);
            rest = others;
            message.to_vec()
        });
        Ok(messages.collect())
    }
}
