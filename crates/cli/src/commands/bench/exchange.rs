//! `clasp bench exchange`: how long several ranks take to add up gradients.

use anyhow::Result;
use clasp_run::collective::{Collective, CollectiveError, ExchangeFormat};
use serde_json::json;

use super::measurement::{Measurement, timed};
use crate::args::{BenchExchange, GlobalOptions, RankArguments};
use crate::commands::ranks::Ranks;
use crate::interrupt;

/// Bytes of an MiB.
const MIB: f64 = (1 << 20) as f64;

/// Sums of as many values as a network has gradients; none on other ranks than 0.
pub fn run(common: &GlobalOptions, options: &BenchExchange) -> Result<Option<Measurement>> {
    let ranks = Ranks::connect(common, &options.ranks, interrupt::flag()?.as_ref())?
        .ok_or(CollectiveError::Stopped)?;
    ranks.run(common, |rank| measure(rank.collective.as_ref(), options))
}

fn measure(ranks: &dyn Collective, options: &BenchExchange) -> Result<Option<Measurement>> {
    let rank = ranks.rank();
    let by = match &options.ranks {
        RankArguments { mpi: true, .. } => "mpi",
        RankArguments { ranks: Some(_), .. } => "tcp",
        _ => "threads",
    };
    let format = match by {
        // Nothing is sent.
        "threads" => ExchangeFormat::F32,
        _ => options.format,
    };
    let mut values = vec![rank.index as f32; options.values];
    let seconds = timed(options.iters, || {
        // Again the same numbers, which never overflow.
        values.fill(rank.index as f32);
        Ok(ranks.all_reduce(&mut values, format)?)
    })?;
    // What a step exchanges beside gradients and centers: a few numbers.
    let message = timed(options.iters, || Ok(ranks.barrier()?))?;
    Ok(rank.writes().then(|| Measurement {
        work: "exchange",
        settings: json!({
            "ranks": rank.size, "values": options.values, "format": format, "by": by,
        }),
        figures: json!({
            "s_per_sum": seconds,
            "mib_per_s": 4.0 * options.values as f64 / MIB / seconds,
            "s_per_message": message,
        }),
    }))
}
