//! Replicas of a network and their threads.

use burn::tensor::Device;
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use crate::kernels::Mode;

/// A thread for each replica of a network in training; none for a single one, which works where it
/// is called.
#[derive(Debug)]
pub struct Replicas(Vec<ThreadPool>);

impl Replicas {
    /// Of `count` replicas.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn new(count: usize) -> Result<Self, ThreadPoolBuildError> {
        let pools = if count <= 1 { 0 } else { count };
        (0..pools)
            .map(|_| ThreadPoolBuilder::new().num_threads(1).build())
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Runs `work` on every share of a batch, each on its replica's thread, whose operations compute as
    /// those of this thread do (precision, fused or not); results are in order.
    pub fn map<S: Send, R: Send>(
        &self,
        shares: Vec<S>,
        work: impl Fn(usize, S) -> R + Sync,
    ) -> Vec<R> {
        let shares = shares.into_iter().enumerate();
        if self.0.is_empty() {
            return shares
                .map(|(replica, share)| work(replica, share))
                .collect();
        }
        let (work, mode) = (&work, Mode::current());
        std::thread::scope(|scope| {
            let threads: Vec<_> = { self.0.iter().zip(shares) }
                .map(|(pool, (replica, share))| {
                    scope.spawn(move || pool.install(|| mode.within(|| work(replica, share))))
                })
                .collect();
            { threads.into_iter() }
                .map(|thread| {
                    let result = thread.join();
                    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect()
        })
    }
}

/// Copies of a network that trains nothing, which share its weights, and the threads of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// Copies of the network, each of which takes whole batches.
    pub replicas: usize,
    /// Threads of each, which prepare its images.
    pub threads: usize,
}

impl Shares {
    /// Of the CPU: a copy a thread, which is faster than one copy with all threads (docs/LOG.md).
    pub fn of_cpu(threads: usize) -> Self {
        Self {
            replicas: threads.max(1),
            threads: 1,
        }
    }

    /// Of `threads` threads beside `device`: one copy for a device that is not the CPU.
    pub fn of(device: &Device, threads: usize) -> Self {
        if device.clone().inner() == Device::flex() {
            return Self::of_cpu(threads);
        }
        Self {
            replicas: 1,
            threads: threads.max(1),
        }
    }

    /// The same with no more copies than there are batches or images for.
    pub fn at_most(self, count: usize) -> Self {
        Self {
            replicas: self.replicas.min(count).max(1),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_compute_as_the_thread_that_starts_them() {
        let replicas = Replicas::new(2).unwrap();
        let fuses = || replicas.map(vec![(); 2], |_, ()| crate::fuses(&Device::flex()));
        assert_eq!(fuses(), [true; 2]);
        assert_eq!(crate::unfused(fuses), [false; 2]);
        assert_eq!(fuses(), [true; 2]);
    }

    #[test]
    fn replicas_are_the_cpus() {
        let shares = Shares::of(&Device::flex().autodiff(), 4);
        assert_eq!((shares.replicas, shares.threads), (4, 1));
        assert_eq!(shares.at_most(3).replicas, 3);
        assert_eq!(shares.at_most(0).replicas, 1);
        // Any other device: this one only records.
        let shares = Shares::of(&Device::capture(), 4);
        assert_eq!((shares.replicas, shares.threads), (1, 4));
    }
}
