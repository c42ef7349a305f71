//! The processes that train one network, as the arguments name them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
#[cfg(feature = "mpi")]
use clasp_run::collective::MpiWorld;
use clasp_run::collective::{Collective, CollectiveError, Local, Rank, TcpOptions, TcpRing};

use crate::args::{GlobalOptions, RankArguments};
#[cfg(feature = "mpi")]
use crate::error_text::error_text;
use crate::progress::say;
#[cfg(feature = "mpi")]
use crate::progress::tell;

/// How long a rank waits for the others, at the start and in every exchange. A rank that ends closes
/// its connections at once; this is for a host or network that is gone without a word.
const PATIENCE: Duration = Duration::from_secs(30 * 60);

/// This process as one of those that train together.
pub enum Ranks {
    /// Alone, or in a ring of TCP connections.
    Connected(Arc<dyn Collective>),
    /// A process of `mpiexec`.
    #[cfg(feature = "mpi")]
    Mpi(Arc<MpiWorld>),
}

impl Ranks {
    /// Connects the processes; returns once all are there, or with nothing once `stop` is set.
    ///
    /// # Errors
    ///
    /// They are not all there, or this build has no MPI.
    pub fn connect(
        common: &GlobalOptions,
        arguments: &RankArguments,
        stop: &AtomicBool,
    ) -> Result<Option<Self>> {
        if arguments.mpi {
            return Self::of_mpi().map(Some);
        }
        let (Some(size), Some(index), Some(master)) =
            (arguments.ranks, arguments.rank, &arguments.master)
        else {
            return Ok(Some(Self::Connected(Arc::new(Local))));
        };
        let rank = Rank::new(index, size).context("--rank")?;
        if rank.writes() && size > 1 {
            say(common, &format!("waiting for {size} processes at {master}"));
        }
        match TcpRing::connect(&TcpOptions {
            rank,
            master,
            patience: PATIENCE,
            waits: &|| !stop.load(Ordering::Relaxed),
        }) {
            Ok(ring) => Ok(Some(Self::Connected(Arc::new(ring)))),
            Err(CollectiveError::Stopped) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether this process writes the files of a run and prints: rank 0.
    pub fn writes(&self) -> bool {
        self.collective().rank().writes()
    }

    /// The options of this process: only rank 0 prints.
    pub fn options(&self, common: &GlobalOptions) -> GlobalOptions {
        GlobalOptions {
            quiet: common.quiet || !self.writes(),
            ..common.clone()
        }
    }

    #[cfg(feature = "mpi")]
    fn of_mpi() -> Result<Self> {
        Ok(Self::Mpi(Arc::new(MpiWorld::initialize()?)))
    }

    #[cfg(not(feature = "mpi"))]
    fn of_mpi() -> Result<Self> {
        anyhow::bail!(
            "--mpi: this build of clasp has no MPI\n\
             hint: build it with `cargo build --release --features mpi`, or give --ranks, --rank and --master"
        )
    }

    /// What the processes exchange by.
    pub fn collective(&self) -> Arc<dyn Collective> {
        match self {
            Self::Connected(collective) => Arc::clone(collective),
            #[cfg(feature = "mpi")]
            Self::Mpi(world) => Arc::clone(world) as Arc<dyn Collective>,
        }
    }

    /// The result of the work of this process. With MPI an error ends all processes here, as the
    /// others would wait for this one forever.
    ///
    /// # Errors
    ///
    /// That of the work.
    pub fn end<T>(&self, result: Result<T>) -> Result<T> {
        match (self, result) {
            #[cfg(feature = "mpi")]
            (Self::Mpi(world), Err(error)) => {
                tell(&error_text(&error));
                world.abort(2)
            }
            (_, result) => result,
        }
    }
}
