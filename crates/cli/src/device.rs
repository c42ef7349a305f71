//! Which device computes, by name.

use anyhow::{Result, bail};
use burn::tensor::Device;
use clasp_model::Precision;

use crate::args::{Common, Products};
use crate::progress::say;

/// The device called `name`, or the best of this build.
///
/// # Errors
///
/// The name is unknown, or this build lacks the device's Cargo feature.
pub fn pick(name: Option<&str>) -> Result<Device> {
    let Some(name) = name else {
        return Ok(Device::default());
    };
    let (kind, index) = match name.split_once(':') {
        Some((kind, index)) => match index.parse::<usize>() {
            Ok(index) => (kind, index),
            Err(_) => bail!("--device {name}: expected a number after the colon, found `{index}`"),
        },
        None => (name, 0),
    };
    let _ = index;
    match kind {
        "cpu" => Ok(Device::flex()),
        #[cfg(feature = "cuda")]
        "cuda" => Ok(Device::cuda(index)),
        #[cfg(feature = "rocm")]
        "rocm" => Ok(Device::rocm(index)),
        #[cfg(feature = "vulkan")]
        "vulkan" => Ok(Device::vulkan(burn::tensor::DeviceKind::DefaultDevice)),
        #[cfg(feature = "metal")]
        "metal" => Ok(Device::metal(burn::tensor::DeviceKind::DefaultDevice)),
        "cuda" | "rocm" | "vulkan" | "metal" => bail!(
            "--device {name}: this build of clasp computes on the CPU only\n  \
             hint: build it with `cargo build --release --features {kind}`"
        ),
        _ => bail!("--device: expected cpu, cuda[:i], vulkan, metal or rocm, found `{name}`"),
    }
}

/// The precision that the user asked for.
///
/// # Errors
///
/// It is for the CPU, and another device computes.
pub fn precision(common: &Common, products: Products, device: &Device) -> Result<Precision> {
    let precision = products.precision;
    if precision != Precision::F32 && *device != Device::flex() {
        bail!(
            "--precision {precision}: expected --device cpu, found another device\n  hint: leave --precision out"
        );
    }
    if !precision.is_in_hardware() {
        say(
            common,
            &format!(
                "note: this processor has no products of {precision} (AMX on x86-64 Linux): f32 would be faster"
            ),
        );
    }
    Ok(precision)
}

/// How many threads to use: what the user asked for, else every core.
pub fn threads(asked: Option<usize>) -> usize {
    asked
        .filter(|&threads| threads > 0)
        .or_else(|| std::thread::available_parallelism().ok().map(usize::from))
        .unwrap_or(1)
}

/// Peak resident memory of this process in MiB, where the system tells (Linux).
pub fn peak_mib() -> Option<u64> {
    let status = fs_err::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024)
}
