//! The result of a benchmark, and how time and memory are measured.

use std::time::Instant;

use anyhow::Result;
use burn::tensor::Device;
use serde_json::{Value, json};

use crate::device;

/// Adds the peak memory of this process, unless the numbers have it.
pub fn add_peak(figures: &mut Value, device: &Device) {
    let names = ["peak_mib", "host_peak_mib"];
    let name = names[usize::from(*device != Device::flex())];
    if let Some(mib) = device::peak_mib()
        && names.iter().all(|name| figures[name].is_null())
    {
        figures[name] = json!(mib);
    }
}

/// The result of a benchmark.
pub struct Measurement {
    /// Name of the benchmark.
    pub work: &'static str,
    /// What the numbers depend on, an object: a record holds for equal settings only.
    pub settings: Value,
    /// Names and numbers, an object.
    pub figures: Value,
}

impl Measurement {
    /// One line for programs: the benchmark, its numbers, and the settings as an object.
    pub fn line(&self) -> Value {
        let mut line = json!({ "work": self.work, "settings": self.settings });
        if let (Some(line), Some(figures)) = (line.as_object_mut(), self.figures.as_object()) {
            line.extend(figures.clone());
        }
        line
    }
}

/// A line on standard error.
#[allow(clippy::print_stderr)]
pub fn say(line: &str) {
    eprintln!("{line}");
}

/// Median seconds of `iters` runs after one warm-up.
pub fn timed(iters: usize, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    run()?;
    let mut seconds = Vec::new();
    for _ in 0..iters.max(1) {
        let begun = Instant::now();
        run()?;
        seconds.push(begun.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}
