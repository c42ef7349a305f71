//! `clasp bench`: speed and memory on this machine, as one line of JSON.

mod apart;
mod compare;
mod exchange;
mod measurement;
mod metrics;
mod networks;
mod operations;
mod record;

use anyhow::{Result, ensure};
use burn::tensor::Device;
use serde_json::json;

use self::measurement::{add_peak, say};
use self::networks::On;
use self::record::{fallen, read_records};
use super::print_text;
use crate::args::{BenchArguments, BenchWork, GlobalOptions};
use crate::{Outcome, device};

/// Runs the command.
pub fn run(common: &GlobalOptions, arguments: &BenchArguments) -> Result<Outcome> {
    let name = common.device.as_deref();
    let device = match arguments.work {
        // Between the ranks of several devices.
        BenchWork::Exchange(_) => device::pick_several(name)?.swap_remove(0),
        _ => device::pick(name)?,
    };
    let threads = device::threads(common.threads);
    let check = arguments.check.as_deref();
    if matches!(arguments.work, BenchWork::Compare(_)) {
        ensure!(check.is_none(), "--check: a comparison has no record");
    }
    let records = check.map(read_records).transpose()?;
    let bench = On {
        common,
        device: &device,
        threads,
    };
    let mut found = match &arguments.work {
        BenchWork::Data(options) => bench.data(options)?,
        BenchWork::Label(options) => bench.label(options)?,
        BenchWork::Pretrain(options) => bench.pretrain(options)?,
        BenchWork::Embed(options) => bench.embed(options)?,
        BenchWork::Index(options) => metrics::index(options)?,
        BenchWork::Rank(options) => metrics::rank(options)?,
        BenchWork::Coco(options) => metrics::coco(options)?,
        BenchWork::Parsing(options) => metrics::parsing(options)?,
        BenchWork::Detection(options) => metrics::detection(options)?,
        BenchWork::Search(options) => metrics::search(options)?,
        BenchWork::Exchange(options) => match exchange::run(common, options)? {
            Some(found) => found,
            // Rank 0 speaks for all.
            None => return Ok(Outcome::Done),
        },
        BenchWork::Compare(options) => return compare::run(options, &device),
    };
    found.settings["threads"] = json!(threads);
    // Benchmarks of networks have added that of their device.
    add_peak(&mut found.figures, &Device::flex());
    print_text(&found.line().to_string())?;
    let Some(records) = records else {
        return Ok(Outcome::Done);
    };
    let fallen = fallen(&found, &records)?;
    for line in &fallen {
        say(&format!("slower: {line}"));
    }
    Ok(if fallen.is_empty() {
        Outcome::Done
    } else {
        Outcome::CheckFailed
    })
}
