//! How a network that trains nothing is shared out over threads.

use burn::tensor::Device;

/// Copies of a network, which share its weights, and the threads of each.
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
