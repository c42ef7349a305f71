//! `clasp synth`.

use anyhow::Result;
use clasp_data::text::shell_path;
use clasp_synth::{SynthConfig, write_dataset};

use super::print_result;
use crate::Outcome;
use crate::args::{GlobalOptions, SynthArguments};
use crate::progress::Meter;

/// Runs the command.
pub fn run(common: &GlobalOptions, arguments: &SynthArguments) -> Result<Outcome> {
    let config = SynthConfig {
        train_identities: arguments.train_identities,
        test_identities: arguments.test_identities,
        cameras: arguments.cameras,
        shots: arguments.shots,
        unlabeled: arguments.unlabeled,
        scenes: arguments.scenes,
        height: arguments.size[0],
        width: arguments.size[1],
        seed: arguments.seed,
        ..SynthConfig::default()
    };
    let mut meter = Meter::new(common, "draw", "images");
    let summary = write_dataset(&arguments.out, &config, &mut |done, total| {
        meter.set(done as u64, total as u64, "");
    })?;
    drop(meter);
    let mut text = format!(
        "{} training, {} query and {} gallery images, {} unlabeled, {} scenes with {} people in {}",
        summary.train,
        summary.query,
        summary.gallery,
        summary.unlabeled,
        summary.scenes,
        summary.pedestrians,
        arguments.out.display()
    );
    let out = arguments.out.display();
    if arguments.unlabeled > 0 {
        let unlabeled = shell_path(&arguments.out.join("unlabeled"));
        text.push_str(&format!("\nnext: clasp label {unlabeled} --out labels"));
    }
    text.push_str(&format!(
        "\n--data {out} is for reid, attributes, parsing and pose"
    ));
    if arguments.scenes > 0 {
        text.push_str(&format!("; --data {out}/scenes for detection and search"));
    }
    print_result(common.json, &summary, &text)?;
    Ok(Outcome::Done)
}
