//! What the *ranks* that train one network exchange: processes, or threads of one for each of its
//! devices. Their number is the *world size*.
//!
//! [`Collective`] has two operations, with which everything else is built: the sum of equally long
//! buffers ([`Collective::all_reduce`]) and short messages of each rank to all
//! ([`Collective::all_gather`]). Both return the same bits on every rank, so that replicas that
//! start equal stay equal. Every rank must call the same operations in the same order.
//!
//! | implementation | ranks | needs |
//! |---|---|---|
//! | [`Local`] | this process alone | nothing |
//! | [`ThreadRank`] | threads of this process, such as one for each GPU | nothing |
//! | [`TcpRing`] | a ring of TCP connections, over one or several hosts | a host and port of rank 0 |
//! | `MpiWorld` | the processes of `mpiexec` | an MPI library; Cargo feature `mpi` |
//!
//! A rank that ends, for whatever reason, ends the others: their next operation fails with
//! [`CollectiveError::Lost`] (threads, TCP), or the launcher ends them (MPI).

mod error;
mod local;
#[cfg(feature = "mpi")]
mod mpi;
mod ring;
mod tcp;
mod threads;

use std::fmt::Debug;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use self::error::CollectiveError;
pub use self::local::Local;
#[cfg(feature = "mpi")]
pub use self::mpi::MpiWorld;
pub use self::tcp::{TcpOptions, TcpRing};
pub use self::threads::ThreadRank;

/// Most ranks. More than any training of this kind has; bounds what is allocated for each rank.
pub const MOST_RANKS: usize = 4096;

/// Most bytes of a message of [`Collective::all_gather`].
pub const LONGEST_MESSAGE: usize = 64 << 20;

/// In which format the values of [`Collective::all_reduce`] are sent. Sums are in f32 either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExchangeFormat {
    /// Without loss.
    #[default]
    F32,
    /// Half of the bytes; partial sums are rounded to bf16 each time that they are sent.
    Bf16,
}

impl FromStr for ExchangeFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err(format!("expected f32 or bf16, found `{text}`")),
        }
    }
}

/// The place of a rank among those that train together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rank {
    /// Its number, from 0.
    pub index: usize,
    /// Number of ranks: the world size.
    pub size: usize,
}

impl Rank {
    /// A process alone.
    pub const ALONE: Self = Self { index: 0, size: 1 };

    /// Rank `index` of `size`.
    ///
    /// # Errors
    /// There is no such rank, or too many.
    pub fn new(index: usize, size: usize) -> Result<Self, CollectiveError> {
        match index < size && size <= MOST_RANKS {
            true => Ok(Self { index, size }),
            false => Err(CollectiveError::NoSuchRank { index, size }),
        }
    }

    /// Whether this rank writes the files of a run: rank 0.
    pub fn writes(self) -> bool {
        self.index == 0
    }
}

/// The ranks that train one network. All must call the same operations in the same order.
pub trait Collective: Send + Sync + Debug {
    /// Which of the ranks this one is.
    fn rank(&self) -> Rank;

    /// Replaces `values` by their sum over all ranks, the same bits on each.
    ///
    /// # Errors
    /// A rank has ended or does something else.
    fn all_reduce(&self, values: &mut [f32], format: ExchangeFormat)
    -> Result<(), CollectiveError>;

    /// The messages of all ranks, in their order. Messages may differ in length; one is at most
    /// [`LONGEST_MESSAGE`] bytes.
    ///
    /// # Errors
    /// A rank has ended or does something else; a message is too long.
    fn all_gather(&self, message: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError>;
}

/// Checks the length of a message before it is sent or memory for it is taken.
fn check_length(rank: usize, length: u64) -> Result<usize, CollectiveError> {
    match usize::try_from(length) {
        Ok(length) if length <= LONGEST_MESSAGE => Ok(length),
        _ => Err(CollectiveError::TooLong { rank, length }),
    }
}

impl dyn Collective + '_ {
    /// Whether this rank is the only one: nothing has to be exchanged.
    pub fn is_alone(&self) -> bool {
        self.rank().size == 1
    }

    /// Returns once all ranks have called it.
    ///
    /// # Errors
    /// See [`Collective::all_gather`].
    pub fn barrier(&self) -> Result<(), CollectiveError> {
        self.all_gather(&[]).map(drop)
    }

    /// Whether `flag` is set on any rank.
    ///
    /// # Errors
    /// See [`Collective::all_gather`].
    pub fn any(&self, flag: bool) -> Result<bool, CollectiveError> {
        let flags = self.all_gather(&[u8::from(flag)])?;
        Ok(flags.iter().any(|flag| flag.contains(&1)))
    }

    /// The `value` of each rank, in their order.
    ///
    /// # Errors
    /// See [`Collective::all_gather`]; a rank sent something else.
    pub fn gather<T: Serialize + DeserializeOwned>(
        &self,
        value: &T,
    ) -> Result<Vec<T>, CollectiveError> {
        let message = serde_json::to_vec(value).map_err(|error| self.not_understood(error))?;
        let messages = self.all_gather(&message)?;
        let read = |message: &Vec<u8>| serde_json::from_slice(message);
        { messages.iter() }
            .map(|message| read(message).map_err(|error| self.not_understood(error)))
            .collect()
    }

    /// The `value` of rank 0.
    ///
    /// # Errors
    /// See `gather`.
    pub fn of_first<T: Serialize + DeserializeOwned>(
        &self,
        value: &T,
    ) -> Result<T, CollectiveError> {
        let first = self.gather(value)?.into_iter().next();
        first.ok_or_else(|| self.not_understood("no message of rank 0"))
    }

    /// Adds up `values` over all ranks in f64, in the order of the ranks: for a few numbers.
    ///
    /// # Errors
    /// See [`Collective::all_gather`]; ranks have different numbers of values.
    pub fn sum(&self, values: &mut [f64]) -> Result<(), CollectiveError> {
        if self.is_alone() {
            return Ok(());
        }
        let message: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let messages = self.all_gather(&message)?;
        values.fill(0.0);
        for (rank, theirs) in messages.iter().enumerate() {
            if theirs.len() != message.len() {
                return Err(CollectiveError::Disagree {
                    what: "the number of values to add up",
                    rank,
                    expected: values.len().to_string(),
                    found: (theirs.len() / 8).to_string(),
                });
            }
            let (theirs, _) = theirs.as_chunks::<8>();
            for (sum, bytes) in values.iter_mut().zip(theirs) {
                *sum += f64::from_le_bytes(*bytes);
            }
        }
        Ok(())
    }

    /// Checks that all ranks have the same `value`, such as a setting.
    ///
    /// # Errors
    /// Names the first rank that has another than rank 0.
    pub fn agree(&self, what: &'static str, value: &str) -> Result<(), CollectiveError> {
        let values = self.gather(&value.to_owned())?;
        let Some(first) = values.first() else {
            return Ok(());
        };
        match values.iter().position(|value| value != first) {
            None => Ok(()),
            Some(rank) => Err(CollectiveError::Disagree {
                what,
                rank,
                expected: first.clone(),
                found: values[rank].clone(),
            }),
        }
    }

    fn not_understood(&self, reason: impl ToString) -> CollectiveError {
        CollectiveError::NotUnderstood {
            rank: self.rank().index,
            reason: reason.to_string(),
        }
    }
}

#[cfg(test)]
mod tests;
