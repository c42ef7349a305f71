//! The ranks that train one network: processes, or threads for the devices of one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
#[cfg(feature = "mpi")]
use clasp_run::collective::MpiWorld;
use clasp_run::collective::{
    Collective, CollectiveError, Local, Rank, TcpOptions, TcpRing, ThreadRank,
};

use crate::args::{GlobalOptions, RankArguments};
use crate::device;
#[cfg(feature = "mpi")]
use crate::error_text::error_text;
use crate::progress::say;
#[cfg(feature = "mpi")]
use crate::progress::tell;

/// How long a rank waits for the others, at the start and in every exchange. A rank that ends closes
/// its connections at once; this is for a host or network that is gone without a word.
const PATIENCE: Duration = Duration::from_secs(30 * 60);

/// The ranks of this process among those that train together: one, or one for each of its devices.
pub struct Ranks {
    devices: Vec<Device>,
    connection: Connection,
}

/// How a rank reaches the others.
enum Connection {
    /// There are none but those of this process.
    Alone,
    /// In a ring of TCP connections.
    Tcp(Arc<TcpRing>),
    /// As a process of `mpiexec`.
    #[cfg(feature = "mpi")]
    Mpi(Arc<MpiWorld>),
}

/// What a rank works with.
pub struct RankContext {
    /// Options of the command; only rank 0 prints.
    pub options: GlobalOptions,
    /// Where it computes.
    pub device: Device,
    /// The names of the devices of this process, separated by commas.
    pub device_names: String,
    /// Its share of the threads that the user asked for.
    pub threads: usize,
    /// What it exchanges with the others by.
    pub collective: Arc<dyn Collective>,
}

impl RankContext {
    /// Whether this rank writes the files of a run and prints: rank 0.
    pub fn writes(&self) -> bool {
        self.collective.rank().writes()
    }
}

impl Ranks {
    /// Connects the processes; returns once all are there, or with nothing once `stop` is set.
    ///
    /// # Errors
    ///
    /// They are not all there, a device is missing, or this build has no MPI.
    pub fn connect(
        common: &GlobalOptions,
        arguments: &RankArguments,
        stop: &AtomicBool,
    ) -> Result<Option<Self>> {
        let devices = device::pick_several(common.device.as_deref())?;
        ensure!(
            devices.len() == 1 || (arguments.ranks.is_none() && !arguments.mpi),
            "--device: expected one device for each process, found {}\nhint: start as many processes as there are devices",
            devices.len()
        );
        let connection = match arguments {
            RankArguments { mpi: true, .. } => Self::of_mpi()?,
            RankArguments {
                ranks: Some(size),
                rank: Some(index),
                master: Some(master),
                ..
            } if *size > 1 || *index > 0 => {
                let rank = Rank::new(*index, *size).context("--rank")?;
                if rank.writes() {
                    say(common, &format!("waiting for {size} processes at {master}"));
                }
                match TcpRing::connect(&TcpOptions {
                    rank,
                    master,
                    patience: PATIENCE,
                    waits: &|| !stop.load(Ordering::Relaxed),
                }) {
                    Ok(ring) => Connection::Tcp(Arc::new(ring)),
                    Err(CollectiveError::Stopped) => return Ok(None),
                    Err(error) => return Err(error.into()),
                }
            }
            _ => Connection::Alone,
        };
        Ok(Some(Self {
            devices,
            connection,
        }))
    }

    #[cfg(feature = "mpi")]
    fn of_mpi() -> Result<Connection> {
        Ok(Connection::Mpi(Arc::new(MpiWorld::initialize()?)))
    }

    #[cfg(not(feature = "mpi"))]
    fn of_mpi() -> Result<Connection> {
        anyhow::bail!(
            "--mpi: this build of clasp has no MPI\n\
             hint: build it with `cargo build --release --features mpi`, or give --ranks, --rank and --master"
        )
    }

    /// Runs `work` as each rank of this process; the result is that of the first. With MPI an error
    /// ends all processes here, as the others would wait for this one forever.
    ///
    /// # Errors
    ///
    /// Those of `work`; where a rank fails because another did, that of the other.
    pub fn run<T: Send>(
        &self,
        common: &GlobalOptions,
        work: impl Fn(&RankContext) -> Result<T> + Sync,
    ) -> Result<T> {
        let threads = (device::threads(common.threads) / self.devices.len()).max(1);
        let names: Vec<String> = self.devices.iter().map(device::name).collect();
        let context = |device: &Device, collective: Arc<dyn Collective>| RankContext {
            options: GlobalOptions {
                quiet: common.quiet || !collective.rank().writes(),
                ..common.clone()
            },
            device: device.clone(),
            device_names: names.join(","),
            threads,
            collective,
        };
        let one = |collective| work(&context(&self.devices[0], collective));
        match &self.connection {
            Connection::Tcp(ring) => one(Arc::clone(ring) as Arc<dyn Collective>),
            #[cfg(feature = "mpi")]
            Connection::Mpi(world) => {
                let result = one(Arc::clone(world) as Arc<dyn Collective>);
                result.inspect_err(|error| {
                    tell(&error_text(error));
                    world.abort(2)
                })
            }
            Connection::Alone if self.devices.len() == 1 => one(Arc::new(Local)),
            Connection::Alone => on_threads(self.devices.len(), |rank| {
                let device = &self.devices[rank.rank().index];
                work(&context(device, rank))
            }),
        }
    }
}

/// Runs `work` on a thread for each rank; see [`Ranks::run`].
fn on_threads<T: Send>(
    size: usize,
    work: impl Fn(Arc<dyn Collective>) -> Result<T> + Sync,
) -> Result<T> {
    // The first error; those after it may be of ranks that lost the one with that error.
    let failed = OnceLock::new();
    let results = ThreadRank::on_each(size, |rank| {
        let index = rank.rank().index;
        let rank: Arc<dyn Collective> = Arc::new(rank);
        let result = work(Arc::clone(&rank));
        if result.is_err() {
            let _ = failed.set(index);
        }
        // The others learn of the end when the rank is dropped, which is here and not before.
        result
    })?;
    let first = failed.get().copied().unwrap_or(0);
    let mut results = results.into_iter().skip(first);
    results.next().context("a rank")?
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn the_error_is_that_of_the_rank_that_failed_first() {
        for failing in 0..3 {
            let work = |rank: Arc<dyn Collective>| {
                if rank.rank().index == failing {
                    bail!("rank {failing} has no images");
                }
                Ok(rank.barrier()?)
            };
            let error = on_threads(3, work).unwrap_err();
            assert_eq!(error.to_string(), format!("rank {failing} has no images"));
        }
    }

    #[test]
    fn a_panic_ends_the_other_ranks() {
        let work = |rank: Arc<dyn Collective>| {
            assert!(rank.rank().index != 1, "a fault of rank 1");
            Ok(rank.barrier()?)
        };
        let ended = std::panic::catch_unwind(|| on_threads(3, work));
        assert!(ended.is_err());
    }

    #[test]
    fn the_result_is_that_of_rank_0() {
        let index = |rank: Arc<dyn Collective>| Ok(rank.rank().index);
        assert_eq!(on_threads(3, index).unwrap(), 0);
    }
}
