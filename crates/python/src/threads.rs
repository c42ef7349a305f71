//! Work without the interpreter's lock: threads, progress, Ctrl-C.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use clasp_tasks::PassProgress;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

/// How often a thread that waits for work looks for Ctrl-C.
const PATIENCE: Duration = Duration::from_millis(100);

/// The pool of the process whose number it stands with, for as many threads as it has.
static POOL: Mutex<Option<(u32, Arc<ThreadPool>)>> = Mutex::new(None);

/// Number of threads: that which was asked for, else one a core.
pub fn count(threads: Option<usize>) -> PyResult<usize> {
    match threads {
        Some(0) => Err(PyValueError::new_err(
            "threads: expected at least 1, found 0",
        )),
        Some(threads) => Ok(threads),
        None => Ok(thread::available_parallelism().map_or(1, usize::from)),
    }
}

/// A pool of threads of this process. A forked process has none of its parent's threads, and would
/// wait for them forever: it gets a pool of its own.
fn pool(threads: usize) -> PyResult<Arc<ThreadPool>> {
    // Only taken while the interpreter is held, as Python's fork is called: never locked in a fork.
    let mut kept = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    let process = std::process::id();
    if let Some((owner, pool)) = kept.take() {
        if owner == process && pool.current_num_threads() == threads {
            *kept = Some((owner, Arc::clone(&pool)));
            return Ok(pool);
        }
        if owner != process {
            // Its end would wait for threads that are not there.
            std::mem::forget(pool);
        }
    }
    let pool = ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = Arc::new(pool.map_err(crate::error::failed)?);
    *kept = Some((process, Arc::clone(&pool)));
    Ok(pool)
}

/// Work on all threads, without the interpreter's lock.
///
/// # Errors
/// The system starts no threads.
pub fn detached<T: Send>(
    py: Python<'_>,
    threads: usize,
    work: impl FnOnce() -> T + Send,
) -> PyResult<T> {
    let pool = pool(threads)?;
    Ok(py.detach(|| pool.install(work)))
}

/// The same for long work, which asks `go_on` after each part of it: `progress` is then called with
/// the numbers of parts done and in all.
///
/// # Errors
/// Those of `progress`; `KeyboardInterrupt`.
pub fn interruptible<T: Send>(
    py: Python<'_>,
    threads: usize,
    progress: Option<&Bound<'_, PyAny>>,
    work: impl FnOnce(&(dyn Fn(PassProgress) -> ControlFlow<()> + Sync)) -> T + Send,
) -> PyResult<T> {
    let pool = pool(threads)?;
    let progress = progress.map(|progress| progress.clone().unbind());
    py.detach(move || {
        let (tell, told) = mpsc::channel();
        let stop = AtomicBool::new(false);
        let stop = &stop;
        thread::scope(|scope| {
            let worker = scope.spawn(move || {
                let go_on = |so_far: PassProgress| {
                    // Nobody listens any more after an exception.
                    let _ = tell.send((so_far.done, so_far.total));
                    match stop.load(Ordering::Relaxed) {
                        true => ControlFlow::Break(()),
                        false => ControlFlow::Continue(()),
                    }
                };
                pool.install(|| work(&go_on))
            });
            let attend = |so_far: Option<(usize, usize)>| {
                Python::attach(|py| {
                    py.check_signals()?;
                    if let (Some(progress), Some(so_far)) = (&progress, so_far) {
                        progress.call1(py, so_far)?;
                    }
                    Ok(())
                })
            };
            let mut raised: PyResult<()> = Ok(());
            loop {
                let so_far = match told.recv_timeout(PATIENCE) {
                    Ok(so_far) => Some(so_far),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => break,
                };
                if raised.is_ok() {
                    raised = attend(so_far);
                    if raised.is_err() {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
            }
            let result = worker.join();
            raised?;
            result.map_err(|_| {
                crate::error::failed("the work ended unexpectedly; please report this")
            })
        })
    })
}
