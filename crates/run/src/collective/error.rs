//! Errors of the exchange between ranks.

/// An error of the exchange between the ranks of a training.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CollectiveError {
    /// The number of the rank is out of range.
    #[error(
        "rank {index} of {size}: expected ranks from 0 to one less than their number, of which there \
         can be {most}",
        most = super::MOST_RANKS
    )]
    NoSuchRank {
        /// The rank.
        index: usize,
        /// The number of ranks.
        size: usize,
    },
    /// The ranks did not find each other.
    #[error(
        "rank {rank}: {address}: {reason}\n  \
         hint: start all ranks with the same --master, an address of rank 0's host that the other \
         hosts reach, and the same --ranks"
    )]
    NotConnected {
        /// This rank.
        rank: usize,
        /// Address that it listens on or connects to.
        address: String,
        /// What failed.
        reason: String,
    },
    /// The user stopped the program before all ranks were there.
    #[error("stopped before all ranks were connected")]
    Stopped,
    /// A rank has ended, or is not reached any more.
    #[error(
        "rank {rank}: rank {peer} is gone: {reason}\n  \
         hint: its own messages say why; then start all ranks again, with --resume if the run has a \
         checkpoint"
    )]
    Lost {
        /// This rank.
        rank: usize,
        /// Its neighbor that is gone.
        peer: usize,
        /// Message of the system.
        reason: String,
    },
    /// Ranks have different settings or data, or are at different operations.
    #[error("rank {rank}: {what}: expected {expected} as on rank 0, found {found}")]
    Disagree {
        /// What differs.
        what: &'static str,
        /// The rank that differs.
        rank: usize,
        /// The value of rank 0.
        expected: String,
        /// The value of that rank.
        found: String,
    },
    /// A message is longer than any of this program.
    #[error(
        "a message of rank {rank} has {length} bytes: expected at most {}",
        super::LONGEST_MESSAGE
    )]
    TooLong {
        /// The rank that sent it.
        rank: usize,
        /// Its length.
        length: u64,
    },
    /// A message is not what this program sends.
    #[error("rank {rank}: a message of another rank is not understood: {reason}")]
    NotUnderstood {
        /// This rank.
        rank: usize,
        /// What is wrong.
        reason: String,
    },
    /// The MPI library cannot be used.
    #[error("MPI: {0}")]
    Mpi(String),
}
