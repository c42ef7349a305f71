//! Ctrl-C (SIGINT) and SIGTERM, as from `docker stop`, Slurm and systemd: the first stops the work
//! at the next safe point, where finished work is saved; the second ends the program.
//!
//! Either way the exit status is that of shells, 128 and the number of the signal: 130 or 143.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};

use crate::progress::tell;

static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Number of the first signal; 0 before it.
static SIGNAL: AtomicI32 = AtomicI32::new(0);

/// The flag that Ctrl-C and SIGTERM set. The handler is installed at the first call.
///
/// # Errors
///
/// The system refuses the handler.
pub fn flag() -> Result<Arc<AtomicBool>> {
    if let Some(stop) = STOP.get() {
        return Ok(stop.clone());
    }
    let stop = STOP.get_or_init(Arc::default).clone();
    install(stop.clone()).context("installing the handler of signals")?;
    Ok(stop)
}

/// The exit status of work that a signal stopped; none where none did.
pub fn status() -> Option<u8> {
    match SIGNAL.load(Ordering::Relaxed) {
        0 => None,
        signal => u8::try_from(128 + signal).ok(),
    }
}

/// What a signal does.
#[expect(
    clippy::disallowed_methods,
    reason = "a second signal ends the program at once, whatever it is doing"
)]
fn on_signal(signal: i32, stop: &AtomicBool) {
    if stop.swap(true, Ordering::Relaxed) {
        std::process::exit(128 + signal);
    }
    SIGNAL.store(signal, Ordering::Relaxed);
    tell("\nstopping at the next safe point; a second signal (Ctrl-C again) ends at once");
}

#[cfg(unix)]
fn install(stop: Arc<AtomicBool>) -> std::io::Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    let listen = move || {
        signals
            .forever()
            .for_each(|signal| on_signal(signal, &stop))
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(listen)
        .map(drop)
}

#[cfg(not(unix))]
fn install(stop: Arc<AtomicBool>) -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(move || on_signal(2, &stop))
}

/// Breaks once the flag is set: for work that asks after each step.
pub fn flow(stop: &AtomicBool) -> ControlFlow<()> {
    if stop.load(Ordering::Relaxed) {
        ControlFlow::Break(())
    } else {
        ControlFlow::Continue(())
    }
}
