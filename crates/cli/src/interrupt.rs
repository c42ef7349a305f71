//! Ctrl-C: the first asks the work to stop at the next safe point, the second ends the program.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};

static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// The flag that Ctrl-C sets. The handler is installed at the first call.
///
/// # Errors
///
/// The system refuses the handler.
pub fn flag() -> Result<Arc<AtomicBool>> {
    if let Some(stop) = STOP.get() {
        return Ok(stop.clone());
    }
    let stop = STOP.get_or_init(Arc::default).clone();
    let handler = stop.clone();
    ctrlc::set_handler(move || {
        if handler.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        announce();
    })
    .context("installing the handler of Ctrl-C")?;
    Ok(stop)
}

/// What work that asks after each step is told: to break once the flag is set.
pub fn flow(stop: &AtomicBool) -> ControlFlow<()> {
    if stop.load(Ordering::Relaxed) {
        ControlFlow::Break(())
    } else {
        ControlFlow::Continue(())
    }
}

#[allow(clippy::print_stderr)]
fn announce() {
    eprintln!("\nstopping at the next safe point; Ctrl-C again ends at once");
}
