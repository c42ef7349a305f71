//! Compiled kernels and the results of autotuning, kept on disk between processes.
//!
//! The first step on a device compiles each kernel and times the candidates for each operation,
//! which takes minutes; the file spares later processes that. Kernels are valid for the very build
//! of the program that compiled them and for the same kind of device; others are ignored. Tuning is
//! valid for a version of CubeCL and keyed by the index of the device, not by its model: each host has
//! a file of its own, so that hosts with different GPUs can share a home folder.

use std::sync::Once;

use burn::cubecl::config::cache::CacheConfig;
use burn::cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
use burn::cubecl::environment::DEFAULT;

/// Turns persistence on. To be called before a device is used for the first time; later calls
/// change nothing.
pub fn enable() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let found = CubeClRuntimeConfig::from_current_dir().override_from_env();
        // Where a device has read the configuration already it stays as it is, which costs time and
        // changes no result.
        let _ = CubeClRuntimeConfig::try_set(persistent(found));
    });
}

/// The configuration of `cubecl.toml` and of the environment, with persistence in
/// `$XDG_CACHE_HOME/cubecl/clasp-HOST.db` unless it names another place.
fn persistent(mut config: CubeClRuntimeConfig) -> CubeClRuntimeConfig {
    config.compilation.cache = true;
    // CubeCL's default is the `target` of a Cargo project around the current folder: nothing that
    // a user of a program expects.
    if matches!(config.environment.path, CacheConfig::Target) {
        config.environment.path = CacheConfig::Global;
    }
    if config.environment.name == DEFAULT {
        config.environment.name = match host() {
            Some(host) => format!("clasp-{host}"),
            None => "clasp".to_owned(),
        };
    }
    config
}

/// The name of this machine, where the system has it in a file (Linux).
fn host() -> Option<String> {
    let text = fs_err::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(text.trim().to_owned()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn persistence_is_on_and_a_place_of_the_user_is_kept() {
        let config = persistent(CubeClRuntimeConfig::default());
        assert!(config.compilation.cache && !config.autotune.disable_cache);
        assert!(config.environment.name.starts_with("clasp"));
        assert!(matches!(config.environment.path, CacheConfig::Global));

        let mut own = CubeClRuntimeConfig::default();
        own.environment.name = "h100".to_owned();
        own.environment.path = CacheConfig::Local;
        own.autotune.disable_cache = true;
        let config = persistent(own);
        assert_eq!(config.environment.name, "h100");
        assert!(matches!(config.environment.path, CacheConfig::Local));
        assert!(config.autotune.disable_cache);
    }
}
