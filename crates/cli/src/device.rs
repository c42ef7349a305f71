//! Which device computes, by name.
//!
//! To add a kind of device: its name here in two places, and the Cargo feature of its back end.

use anyhow::{Result, bail, ensure};
use burn::tensor::{DType, Device, DeviceType};
use clasp_model::Precision;

use crate::args::{GlobalOptions, MatrixPrecision};
use crate::progress::say;

/// Kinds of devices by name, the best first, that an accelerator may be asked for by.
const ACCELERATORS: [&str; 4] = ["cuda", "rocm", "metal", "vulkan"];

/// The device called `name`, or the best that this build and this machine have.
///
/// Accelerators of a kind are counted from 0 in the order of their driver; Vulkan's and Metal's
/// with discrete ones first. Without a name a driver that emulates a GPU on the CPU is passed over,
/// as the CPU itself is faster.
///
/// # Errors
///
/// The name is unknown, this build lacks the device's Cargo feature, or this machine has no such
/// device.
pub fn pick(name: Option<&str>) -> Result<Device> {
    let Some(name) = name else {
        let mut devices = ACCELERATORS.into_iter().flat_map(|kind| {
            let devices = found(kind).unwrap_or_default().into_iter();
            devices.map(move |device| (kind, device))
        });
        let Some((kind, device)) = devices.find(|(_, device)| !is_emulated(device)) else {
            return Ok(Device::flex());
        };
        check_compiler(kind)?;
        return Ok(device);
    };
    ensure!(
        !name.contains(',') && !name.ends_with(":all"),
        "--device {name}: expected one device; several are for pretrain, finetune and bench exchange"
    );
    let (kind, index) = match name.split_once(':') {
        Some((kind, index)) => match index.parse::<usize>() {
            Ok(index) => (kind, index),
            Err(_) => bail!("--device {name}: expected a number after the colon, found `{index}`"),
        },
        None => (name, 0),
    };
    if kind == "cpu" {
        ensure!(
            index == 0,
            "--device {name}: expected cpu, which is all processors\nhint: limit it with --threads N"
        );
        return Ok(Device::flex());
    }
    ensure!(
        ACCELERATORS.contains(&kind),
        "--device: expected cpu, cuda[:i], rocm[:i], metal[:i] or vulkan[:i], found `{name}`"
    );
    let Some(devices) = found(kind) else {
        bail!(
            "--device {name}: this build of clasp cannot compute there\n\
             hint: build it with `cargo build --release --features {kind}`"
        );
    };
    match (devices.len(), devices.into_iter().nth(index)) {
        (_, Some(device)) => {
            check_compiler(kind)?;
            Ok(device)
        }
        (0, None) => bail!(
            "--device {name}: this machine has no such device, or no driver for it\nhint: try --device cpu"
        ),
        (count, None) => bail!(
            "--device {name}: expected {kind}:0 to {kind}:{}, which this machine has",
            count - 1
        ),
    }
}

/// The devices called `names`, separated by commas, as [`pick`] finds each; `cuda:all` stands for all
/// of that kind.
///
/// # Errors
///
/// See [`pick`]; a device other than the CPU is named twice.
pub fn pick_several(names: Option<&str>) -> Result<Vec<Device>> {
    let Some(names) = names else {
        return Ok(vec![pick(None)?]);
    };
    let mut devices: Vec<Device> = Vec::new();
    for name in names.split(',') {
        let found = match name.split_once(':') {
            Some((kind, "all")) => {
                // The first, so that there is one and kernels can be compiled for it.
                let first = pick(Some(kind))?;
                let mut all = found(kind).unwrap_or_default();
                all.retain(|device| !is_emulated(device));
                if all.is_empty() { vec![first] } else { all }
            }
            _ => vec![pick(Some(name))?],
        };
        for device in found {
            ensure!(
                device == Device::flex() || !devices.contains(&device),
                "--device {names}: expected each device once, found {name} again"
            );
            devices.push(device);
        }
    }
    Ok(devices)
}

/// Checks that kernels can be compiled for that kind of device.
fn check_compiler(kind: &str) -> Result<()> {
    #[cfg(feature = "cuda-nvrtc")]
    if kind == "cuda"
        && let Some(obstacle) = crate::nvrtc::obstacle()
    {
        bail!("CUDA's run-time compiler cannot be used: {obstacle}");
    }
    let _ = kind;
    Ok(())
}

/// The name by which [`pick`] finds a device again: `cpu`, or as `cuda:0`.
pub fn name(device: &Device) -> String {
    let names = ACCELERATORS.into_iter().flat_map(|kind| {
        let devices = found(kind).unwrap_or_default().into_iter().enumerate();
        devices.map(move |(index, device)| (format!("{kind}:{index}"), device))
    });
    { names.into_iter() }
        .find(|(_, found)| found == device)
        .map_or("cpu".to_owned(), |(name, _)| name)
}

/// The devices of a kind on this machine; none where this build cannot use the kind.
fn found(kind: &str) -> Option<Vec<Device>> {
    let types: &[(&str, DeviceType)] = &[
        #[cfg(feature = "cuda")]
        ("cuda", DeviceType::Cuda),
        #[cfg(feature = "rocm")]
        ("rocm", DeviceType::Rocm),
        #[cfg(feature = "metal")]
        ("metal", DeviceType::Metal),
        #[cfg(feature = "vulkan")]
        ("vulkan", DeviceType::Vulkan),
    ];
    let (_, of_kind) = types.iter().find(|(name, _)| *name == kind)?;
    #[cfg(feature = "gpu")]
    crate::kernel_cache::enable();
    Some(Device::enumerate(of_kind.clone()).into_vec())
}

/// Whether the device is emulated on the CPU.
fn is_emulated(device: &Device) -> bool {
    #[cfg(feature = "vulkan")]
    return *device == Device::vulkan(burn::tensor::DeviceKind::Cpu);
    #[cfg(not(feature = "vulkan"))]
    {
        let _ = device;
        false
    }
}

/// The precision that the user asked for.
///
/// # Errors
///
/// The device does not compute in it.
pub fn precision(
    common: &GlobalOptions,
    asked: MatrixPrecision,
    device: &Device,
) -> Result<Precision> {
    let precision = asked.format;
    let on_cpu = *device == Device::flex();
    ensure!(
        on_cpu || precision == Precision::F32 || device.supports_dtype(DType::BF16),
        "--precision {precision}: expected f32, as the device does not compute in {precision}\n\
         hint: leave --precision out, or take --device cpu"
    );
    if on_cpu && !precision.is_in_hardware() {
        say(
            common,
            &format!(
                "note: this processor has no fast instructions for {precision} (Intel AMX, or AMD AVX512-BF16): f32 is as fast or faster"
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

/// Peak resident memory of this process in MiB, where the system reports it (Linux).
pub fn peak_mib() -> Option<u64> {
    let status = fs_err::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(name: &str) -> String {
        pick(Some(name)).unwrap_err().to_string()
    }

    #[test]
    fn several_devices_are_separated_by_commas() {
        let count = |names: &str| pick_several(Some(names)).unwrap().len();
        assert_eq!(pick_several(None).unwrap().len(), 1);
        assert_eq!(
            [count("cpu"), count("cpu,cpu"), count("cpu:all")],
            [1, 2, 1]
        );
        for names in ["cpu,cpu", "cpu:all"] {
            assert!(error(names).contains("expected one device"));
        }
        for (names, expected) in [("cpu,", "found ``"), ("cpu,npu", "npu"), ("npu:all", "npu")] {
            let error = pick_several(Some(names)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_device_is_what_was_asked_for_or_an_error() {
        for name in ["cpu", "cpu:0"] {
            assert_eq!(pick(Some(name)).unwrap(), Device::flex());
        }
        assert!(error("cpu:7").contains("--threads"));
        assert!(error("cuda:x").contains("a number after the colon"));
        assert!(error("npu").contains("vulkan"));
        for (kind, built) in [
            ("cuda", cfg!(feature = "cuda")),
            ("rocm", cfg!(feature = "rocm")),
            ("metal", cfg!(feature = "metal")),
            ("vulkan", cfg!(feature = "vulkan")),
        ] {
            // No machine has that many.
            let error = error(&format!("{kind}:60000"));
            let expected = if built {
                "this machine has"
            } else {
                "--features"
            };
            assert!(error.contains(kind) && error.contains(expected), "{error}");
        }
    }
}
