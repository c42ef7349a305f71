//! `clasp export`: a backbone for other programs.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use clasp_data::image::{Filter, Limits, Rgb, decode, resize};
use clasp_data::source::Source;
use clasp_data::synth;
use clasp_model::backbone::{Adapter, Backbone};
use clasp_model::heads::{AttributeHead, PartHead};
use clasp_model::mix::Mix;
use clasp_pretrain::checkpoint::networks;
use clasp_tasks::Preprocess;
use clasp_weights::backbone::load_backbone;
use clasp_weights::checkpoint::Precision;
use clasp_weights::export;
use clasp_weights::onnx::{self, Output, Prompt};
use serde_json::json;

use super::print_result;
use crate::Outcome;
use crate::args::{Common, Export, ExportOnnx, ExportSafetensors, OnnxOutput};

/// Images that an ONNX file is checked with.
const SAMPLES: usize = 4;

/// Runs the verb.
pub fn run(common: &Common, arguments: &Export) -> Result<Outcome> {
    match arguments {
        Export::Safetensors(arguments) => safetensors(common, arguments),
        Export::Onnx(arguments) => onnx(common, arguments),
    }
}

fn safetensors(common: &Common, arguments: &ExportSafetensors) -> Result<Outcome> {
    let (backbone, meta) = load_backbone(&arguments.model, &Device::flex())?;
    let options = export::Options {
        names: arguments.names,
        drop_adapter: arguments.drop_adapter,
        precision: if arguments.half {
            Precision::Half
        } else {
            Precision::Full
        },
    };
    let exported = export::export(&arguments.out, &backbone, &meta, options)?;
    let file = format!("{:?}", arguments.out.display().to_string());
    let python = exported.python.replace("FILE", &file);
    let mut text = format!(
        "{} tensors in {} names, written to {}\n\n{python}\n",
        exported.tensors,
        arguments.names,
        arguments.out.display()
    );
    for warning in &exported.warnings {
        text.push_str(&format!("\nwarning: {warning}"));
    }
    let value = json!({
        "out": arguments.out,
        "names": arguments.names.to_string(),
        "tensors": exported.tensors,
        "dropped": exported.dropped,
        "python": python,
        "warnings": exported.warnings,
    });
    print_result(common.json, &value, &text)?;
    Ok(Outcome::Done)
}

/// A backbone with the heads of pre-training that were asked for.
#[derive(Module, Debug)]
struct Network {
    backbone: Backbone,
    part: Option<PartHead>,
    attribute: Option<AttributeHead>,
}

impl Network {
    /// images: [batch, 3, height, width], mix: [batch, tasks].
    fn outputs(
        &self,
        images: Tensor<4>,
        mix: Tensor<2>,
        wanted: &[OnnxOutput],
    ) -> Vec<(String, Output)> {
        let features = self.backbone.forward(images, mix, None);
        let mut outputs: Vec<(String, Output)> = Vec::new();
        let mut add = |name: &str, output: Output| outputs.push((name.to_owned(), output));
        for output in wanted {
            match output {
                OnnxOutput::Pooled => add("pooled", features.pooled.clone().into()),
                OnnxOutput::Tokens => {
                    let tokens = features.map.clone().flatten::<3>(2, 3).swap_dims(1, 2);
                    add("tokens", tokens.into());
                }
                OnnxOutput::Map => add("map", features.map.clone().into()),
                OnnxOutput::Pyramid => {
                    for (stage, map) in features.pyramid.iter().enumerate() {
                        add(&format!("stage{}", stage + 1), map.clone().into());
                    }
                }
                OnnxOutput::Part => {
                    if let Some(head) = &self.part {
                        add("part", head.forward(features.map.clone()).into());
                    }
                }
                OnnxOutput::Attribute => {
                    if let Some(head) = &self.attribute {
                        add("attribute", head.forward(features.pooled.clone()).into());
                    }
                }
            }
        }
        outputs
    }
}

fn onnx(common: &Common, arguments: &ExportOnnx) -> Result<Outcome> {
    let device = Device::flex();
    let mut wanted = arguments.outputs.clone();
    wanted.dedup();
    let wants = |output| wanted.contains(&output);
    let (network, adapter, preprocess, licences, origin) =
        if wants(OnnxOutput::Part) || wants(OnnxOutput::Attribute) {
            let made = networks(&arguments.model, &device)?;
            for (output, missing, task) in [
                (OnnxOutput::Part, made.part.is_none(), "part"),
                (OnnxOutput::Attribute, made.attribute.is_none(), "attribute"),
            ] {
                ensure!(
                    !(wants(output) && missing),
                    "{} has no head of {task}s: method `{}` did not learn them",
                    made.path.display(),
                    made.recipe.method.name()
                );
            }
            let views = &made.recipe.views;
            let preprocess = (views.global_size, views.mean, views.std, Filter::Bicubic);
            let network = Network {
                backbone: made.backbone,
                part: made.part.filter(|_| wants(OnnxOutput::Part)),
                attribute: made.attribute.filter(|_| wants(OnnxOutput::Attribute)),
            };
            let origin = format!("student of {}", made.path.display());
            (network, made.config.adapter, preprocess, Vec::new(), origin)
        } else {
            let (backbone, meta) = load_backbone(&arguments.model, &device)?;
            let network = Network {
                backbone,
                part: None,
                attribute: None,
            };
            let size = [meta.height, meta.width];
            let filter = Preprocess::of(&meta, &arguments.model)?.filter;
            let preprocess = (size, meta.mean, meta.std, filter);
            (
                network,
                meta.config.adapter,
                preprocess,
                meta.licences,
                meta.origin,
            )
        };
    let ([height, width], mean, std, filter) = preprocess;
    let size = arguments.size.unwrap_or([height, width]);
    let prompt = match arguments.mix.as_str() {
        "input" if adapter == Adapter::None => bail!(
            "{}: a backbone without an adapter does not hear the mix, so it cannot be an input\n  hint: leave out --mix",
            arguments.model.display()
        ),
        "input" => Prompt::Input,
        mix => Prompt::Folded(mix.parse::<Mix>()?),
    };
    let samples = samples(arguments.check.as_deref(), size, filter)?;
    let mix = match (prompt, &adapter) {
        (Prompt::Folded(_), Adapter::None) => "none: the backbone has no adapter",
        (Prompt::Folded(_), _) => arguments.mix.as_str(),
        (Prompt::Input, _) => "input `mix`: identity, part, attribute",
    };
    let numbers = |values: [f32; 3]| values.map(|value| value.to_string()).join(", ");
    let metadata = BTreeMap::from([
        ("mean".to_owned(), numbers(mean)),
        ("std".to_owned(), numbers(std)),
        (
            "size".to_owned(),
            format!("{}x{} (height x width)", size[0], size[1]),
        ),
        ("filter".to_owned(), format!("{filter:?}").to_lowercase()),
        (
            "pixels".to_owned(),
            "0 to 1 before mean and std, RGB".to_owned(),
        ),
        ("mix".to_owned(), mix.to_owned()),
        ("origin".to_owned(), origin),
        ("licences".to_owned(), licences.join("\n")),
    ]);
    let folded = match prompt {
        Prompt::Folded(mix) => Network {
            backbone: network.backbone.clone().fold(mix),
            ..network.clone()
        },
        Prompt::Input => network.clone(),
    };
    let options = onnx::Options {
        size,
        batch: arguments.batch.map(|batch| batch as usize),
        prompt,
        bytes: arguments.bytes,
        mean,
        std,
        half: arguments.half,
        external: arguments.external_data,
        metadata,
        samples,
    };
    let forward = |network: &Network, images: Tensor<4>, mix: Tensor<2>| {
        network.outputs(images, mix, &wanted)
    };
    let reference = |images, mix| forward(&network, images, mix);
    let exported = onnx::export(&arguments.out, &folded, &forward, &reference, &options)?;

    let mut text = format!("{}\n", exported.signature.join("\n"));
    let nodes: usize = exported.operators.values().sum();
    text.push_str(&format!(
        "opset {}, {nodes} nodes, {:.1} MB, mix {mix}\n",
        exported.opset,
        exported.bytes as f64 / 1e6
    ));
    for check in &exported.checks {
        let worst = check.differences.values().copied().fold(0.0, f32::max);
        text.push_str(&format!(
            "checked on {} {}: largest difference {worst:.1e} (most {:.0e})\n",
            check.batch, check.on, exported.tolerance
        ));
    }
    if let Some(data) = &exported.external {
        text.push_str(&format!(
            "weights in {}: keep the two together\n",
            data.display()
        ));
    }
    text.push_str(&format!("written to {}", arguments.out.display()));
    let value = json!({ "out": arguments.out, "mix": mix, "exported": exported });
    print_result(common.json, &value, &text)?;
    Ok(Outcome::Done)
}

/// Images of the user's, or drawn people: bytes [n, height, width, 3].
fn samples(
    images: Option<&str>,
    [height, width]: [usize; 2],
    filter: Filter,
) -> Result<(String, Vec<u8>)> {
    let (name, people): (&str, Vec<Rgb>) = match images {
        None => {
            let drawn = |index| synth::unlabelled(0, index, height.max(64), width.max(32)).1;
            let people = (0..SAMPLES as u64).map(|index| decode(&drawn(index), &Limits::default()));
            ("drawn people", people.collect::<Result<_, _>>()?)
        }
        Some(images) => {
            let source = Source::open(images)?;
            let count = source.len().min(SAMPLES);
            ensure!(count > 0, "{images} holds no image");
            let read = |index| {
                let place = || source.place(index);
                let bytes = source.read(index).with_context(place)?;
                decode(&bytes, &Limits::default()).with_context(place)
            };
            (
                "of your images",
                (0..count).map(read).collect::<Result<_>>()?,
            )
        }
    };
    let mut bytes = Vec::with_capacity(people.len() * 3 * height * width);
    for image in &people {
        let image = resize(image, height, width, filter);
        (0..height).for_each(|y| bytes.extend_from_slice(image.row(y)));
    }
    Ok((name.to_owned(), bytes))
}
