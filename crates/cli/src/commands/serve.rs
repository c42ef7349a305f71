//! `clasp serve`: models, a gallery and pages over HTTP.

use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use clasp_data::missing::require;
use clasp_tasks::PassProgress;
use clasp_web::{Compute, ServeConfig, ServeEvents, ServeLimits, serve};
use serde_json::json;

use super::print_result;
use crate::args::{GlobalOptions, ServeArguments};
use crate::progress::{Meter, tell};
use crate::{Outcome, device, interrupt};

/// Runs the command: until a signal stops it.
pub fn run(common: &GlobalOptions, arguments: &ServeArguments) -> Result<Outcome> {
    if let Some(runs) = &arguments.runs {
        require(runs, "a folder with runs")?;
    }
    let device = device::pick(common.device.as_deref())?;
    let precision = device::precision(common, arguments.precision, &device)?;
    let config = ServeConfig {
        models: arguments.models.clone(),
        gallery: arguments.gallery.clone(),
        store: arguments.store.clone(),
        labels: arguments.labels.clone(),
        runs: arguments.runs.clone(),
        listen: arguments.listen,
        token: token(arguments)?,
        insecure: arguments.insecure,
        hosts: arguments.hosts.clone(),
        limits: limits(arguments)?,
        compute: Compute {
            device,
            precision,
            threads: device::threads(common.threads),
        },
        keep_going: arguments.keep_going,
    };
    let meter = Mutex::new(Meter::new(common, "serve: gallery", "images"));
    let as_json = common.json;
    let events = ServeEvents {
        listening: Box::new(move |address| {
            let url = format!("http://{address}");
            let value = json!({"url": url});
            // Who reads the address may be gone; the server is there for others.
            let _ = print_result(as_json, &value, &url);
        }),
        progress: Box::new(move |progress: PassProgress| {
            if let Ok(mut meter) = meter.lock() {
                meter.set(progress.done as u64, progress.total as u64, "");
            }
        }),
        note: Arc::new(|text| tell(&text)),
    };
    let stop = interrupt::flag()?;
    serve(config, events, stop)?;
    Ok(Outcome::Stopped)
}

fn token(arguments: &ServeArguments) -> Result<Option<String>> {
    let Some(file) = &arguments.token_file else {
        return Ok(arguments.token.clone());
    };
    let text = fs_err::read_to_string(file).context("--token-file")?;
    Ok(Some(text.trim().to_owned()))
}

fn limits(arguments: &ServeArguments) -> Result<ServeLimits> {
    if arguments.max_images > arguments.max_queue {
        bail!(
            "--max-images {}: expected at most --max-queue, which is {}",
            arguments.max_images,
            arguments.max_queue
        );
    }
    Ok(ServeLimits {
        body_bytes: arguments.max_body << 20,
        pixels: arguments.max_pixels as u64 * 1_000_000,
        images: arguments.max_images,
        seconds: arguments.max_seconds as u64,
        queue: arguments.max_queue,
        batch: arguments.max_batch,
        wait_ms: arguments.max_wait as u64,
        connections: arguments.max_connections,
        gallery: arguments.max_gallery,
    })
}
