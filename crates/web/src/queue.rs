//! Images that wait for the model, and the thread that computes them.
//!
//! Images of all requests wait in one bounded queue. The thread takes those that are for the same
//! work together, up to the largest batch, and waits for further ones only so long as the first of
//! them has not waited its time. Images whose request is gone are dropped.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clasp_data::image::ImageError;
use tokio::sync::oneshot;

use crate::counters::Counters;
use crate::limits::ServeLimits;
use crate::models::{ImageOutput, ImageWork, Models};

/// Why there is no output for an image.
#[derive(Debug)]
pub enum JobFailure {
    /// The image cannot be used.
    Image(ImageError),
    /// The model failed.
    Model(String),
}

/// The output for an image.
pub type JobResult = Result<ImageOutput, JobFailure>;

/// An image that waits.
struct Job {
    work: ImageWork,
    image: Bytes,
    since: Instant,
    done: oneshot::Sender<JobResult>,
}

/// The queue is full.
#[derive(Debug, PartialEq, Eq)]
pub struct QueueFull {
    /// Most images that may wait.
    pub limit: usize,
}

/// Images that wait for the model.
pub struct InferenceQueue {
    state: Mutex<QueueState>,
    changed: Condvar,
    limits: ServeLimits,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct QueueState {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl InferenceQueue {
    /// An empty queue.
    pub fn new(limits: ServeLimits, counters: Arc<Counters>) -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            limits,
            counters,
        }
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        // Nothing that can panic happens under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the images of a request, all or none; the outputs come through the receivers, in order.
    ///
    /// # Errors
    /// They do not fit any more.
    pub fn add(
        &self,
        work: ImageWork,
        images: Vec<Bytes>,
    ) -> Result<Vec<oneshot::Receiver<JobResult>>, QueueFull> {
        let mut state = self.lock();
        // Those of clients that left take no place.
        if state.jobs.len() + images.len() > self.limits.queue {
            self.drop_abandoned(&mut state);
        }
        if state.closed || state.jobs.len() + images.len() > self.limits.queue {
            return Err(QueueFull {
                limit: self.limits.queue,
            });
        }
        let since = Instant::now();
        let mut receivers = Vec::with_capacity(images.len());
        for image in images {
            let (done, receiver) = oneshot::channel();
            state.jobs.push_back(Job {
                work,
                image,
                since,
                done,
            });
            receivers.push(receiver);
        }
        self.counters.set_waiting(state.jobs.len());
        drop(state);
        self.changed.notify_all();
        Ok(receivers)
    }

    /// Computes what waits until [`InferenceQueue::close`]; on a thread of its own.
    pub fn work(&self, models: &Models) {
        while let Some((work, jobs)) = self.next_batch() {
            let images: Vec<Bytes> = jobs.iter().map(|job| job.image.clone()).collect();
            let began = Instant::now();
            // A panic of a model fails these images, not the server.
            let outputs = catch_unwind(AssertUnwindSafe(|| models.run(&work, &images)));
            self.counters.add_batch(images.len(), began.elapsed());
            let failure = match outputs {
                Ok(Ok(outputs)) => {
                    for (job, output) in jobs.into_iter().zip(outputs) {
                        let _ = job.done.send(output.map_err(JobFailure::Image));
                    }
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the model panicked".to_owned(),
            };
            for job in jobs {
                let _ = job.done.send(Err(JobFailure::Model(failure.clone())));
            }
        }
    }

    /// No further images are taken; [`InferenceQueue::work`] ends when those that wait are done.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// No further images are taken, and those that wait are dropped: their requests end.
    pub fn abandon(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.jobs.clear();
        self.counters.set_waiting(0);
        drop(state);
        self.changed.notify_all();
    }

    /// Drops the images of requests that ended without their outputs.
    pub fn forget_abandoned(&self) {
        let mut state = self.lock();
        self.drop_abandoned(&mut state);
        self.counters.set_waiting(state.jobs.len());
    }

    fn drop_abandoned(&self, state: &mut QueueState) {
        let before = state.jobs.len();
        state.jobs.retain(|job| !job.done.is_closed());
        self.counters.add_cancelled(before - state.jobs.len());
    }

    /// The next images for the same work; none when the queue is closed and empty.
    fn next_batch(&self) -> Option<(ImageWork, Vec<Job>)> {
        let longest = Duration::from_millis(self.limits.wait_ms);
        let mut state = self.lock();
        loop {
            self.drop_abandoned(&mut state);
            let Some(first) = state.jobs.front() else {
                if state.closed {
                    return None;
                }
                let woken = self.changed.wait(state);
                state = woken.unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let (work, waited) = (first.work, first.since.elapsed());
            let alike = state.jobs.iter().filter(|job| job.work == work).count();
            if alike < self.limits.batch && waited < longest && !state.closed {
                let woken = self.changed.wait_timeout(state, longest - waited);
                state = woken.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            let (mut batch, mut others) = (Vec::new(), VecDeque::new());
            for job in state.jobs.drain(..) {
                match job.work == work && batch.len() < self.limits.batch {
                    true => batch.push(job),
                    false => others.push_back(job),
                }
            }
            state.jobs = others;
            self.counters.set_waiting(state.jobs.len());
            return Some((work, batch));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clasp_model::prompt::PromptWeights;

    fn queue(batch: usize, wait_ms: u64) -> InferenceQueue {
        let limits = ServeLimits {
            queue: 5,
            batch,
            wait_ms,
            ..ServeLimits::default()
        };
        InferenceQueue::new(limits, Arc::default())
    }

    fn images(count: usize) -> Vec<Bytes> {
        vec![Bytes::new(); count]
    }

    #[test]
    fn images_for_the_same_work_are_taken_together_in_order() {
        let queue = queue(2, 0);
        let embed = ImageWork::Embed(PromptWeights::single(0));
        let _a = queue.add(ImageWork::Search, images(1)).unwrap();
        let _b = queue.add(embed, images(1)).unwrap();
        let _c = queue.add(ImageWork::Search, images(2)).unwrap();
        let sizes: Vec<_> = (0..3).map(|_| queue.next_batch().unwrap()).collect();
        let sizes: Vec<_> = sizes
            .iter()
            .map(|(work, jobs)| (*work, jobs.len()))
            .collect();
        assert_eq!(
            sizes,
            [(ImageWork::Search, 2), (embed, 1), (ImageWork::Search, 1)]
        );
        queue.close();
        assert!(queue.next_batch().is_none());
        assert!(queue.add(ImageWork::Search, images(1)).is_err());
    }

    #[test]
    fn a_full_queue_refuses_whole_requests_and_forgets_clients_that_left() {
        let queue = queue(8, 0);
        let first = queue.add(ImageWork::Search, images(4)).unwrap();
        assert_eq!(
            queue.add(ImageWork::Search, images(2)).err(),
            Some(QueueFull { limit: 5 })
        );
        drop(first);
        let _second = queue.add(ImageWork::Search, images(5)).unwrap();
        assert_eq!(queue.next_batch().unwrap().1.len(), 5);
    }

    #[test]
    fn abandoned_images_are_dropped_and_their_requests_end() {
        let queue = queue(8, 0);
        drop(queue.add(ImageWork::Search, images(4)).unwrap());
        let kept = queue.add(ImageWork::Search, images(1)).unwrap();
        queue.forget_abandoned();
        assert_eq!(queue.lock().jobs.len(), 1);
        queue.abandon();
        assert!(kept.into_iter().all(|one| one.blocking_recv().is_err()));
        assert!(queue.next_batch().is_none());
    }

    #[test]
    fn an_image_waits_for_others_its_time_and_no_longer() {
        let queue = queue(3, 150);
        let began = Instant::now();
        let _a = queue.add(ImageWork::Search, images(1)).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(30));
                std::mem::forget(queue.add(ImageWork::Search, images(1)).unwrap());
            });
            assert_eq!(queue.next_batch().unwrap().1.len(), 2);
        });
        assert!(began.elapsed() >= Duration::from_millis(150));
        // A full batch does not wait.
        let _b = queue.add(ImageWork::Search, images(3)).unwrap();
        let began = Instant::now();
        assert_eq!(queue.next_batch().unwrap().1.len(), 3);
        assert!(began.elapsed() < Duration::from_millis(140));
    }
}
