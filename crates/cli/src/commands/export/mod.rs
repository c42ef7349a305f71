//! `clasp export`: a backbone for other programs.
//!
//! To add a format: a variant of `ExportCommand` in `args/files.rs`, an arm in [`run`], and the
//! writer in `clasp_weights`.

mod hub;
mod messages;

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use clasp_data::image::{Filter, Limits, Rgb, decode, resize};
use clasp_model::backbone::{Adapter, Backbone};
use clasp_model::heads::{AttributeHead, PartHead};
use clasp_model::prompt::{IDENTITY, PromptWeights};
use clasp_pretrain::checkpoint::read_student;
use clasp_tasks::Preprocess;
use clasp_tasks::task::Objective;
use clasp_tasks::{TaskKind, with_task};
use clasp_weights::checkpoint::StorageFormat;
use clasp_weights::export;
use clasp_weights::finetuned;
use clasp_weights::import::load_backbone;
use clasp_weights::onnx::{self, Output, Prompt};
use serde_json::json;

use self::messages::{no_prompts, written_text};
use super::load_model::load;
use super::{Input, check_writable, claim_outputs, open_images, print_result};
use crate::Outcome;
use crate::args::{
    ExportCommand, ExportOnnxArguments, ExportPrecision, ExportSafetensorsArguments, GlobalOptions,
    OnnxOutput,
};

/// Images that an ONNX file is verified with.
const SAMPLES: usize = 4;

/// Runs the command.
pub fn run(common: &GlobalOptions, arguments: &ExportCommand) -> Result<Outcome> {
    match arguments {
        ExportCommand::Safetensors(arguments) => safetensors(common, arguments),
        ExportCommand::Onnx(arguments) => onnx(common, arguments),
        ExportCommand::Hub(arguments) => hub::run(common, arguments),
    }
}

fn safetensors(common: &GlobalOptions, arguments: &ExportSafetensorsArguments) -> Result<Outcome> {
    claim_outputs(
        &[("--out", &arguments.out)],
        &[Input::Model(&arguments.model)],
    )?;
    let (mut backbone, mut meta) = load_backbone(&arguments.model, &Device::flex())?;
    if let Some([height, width]) = arguments.size {
        (meta.height, meta.width) = (height, width);
    }
    if let Some(mix) = &arguments.prompt {
        let mix: PromptWeights = mix.parse()?;
        (backbone, meta) = export::folded(&backbone, &meta, mix)
            .ok_or_else(|| no_prompts(&mix.to_string(), &arguments.model))?;
    }
    let options = export::ExportOptions {
        names: arguments.names,
        drop_adapter: arguments.drop_adapter,
        precision: match arguments.precision {
            ExportPrecision::F32 => StorageFormat::F32,
            ExportPrecision::Fp16 => StorageFormat::Fp16,
        },
    };
    let exported = export::export(&arguments.out, &backbone, &meta, options)?;
    let file = format!("{:?}", arguments.out.display().to_string());
    let python = exported.python.replace("FILE", &file);
    let first = format!(
        "{} tensors in {} names, written to {}",
        exported.tensors,
        arguments.names,
        arguments.out.display()
    );
    let text = written_text(first, &python, &exported.warnings);
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
struct ExportedNetwork {
    backbone: Backbone,
    part: Option<PartHead>,
    attribute: Option<AttributeHead>,
}

impl ExportedNetwork {
    /// images: [batch, 3, height, width], mix: [batch, prompts].
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

/// Metadata of an exported network.
struct Facts {
    /// What conditions its blocks on the prompt.
    adapter: Adapter,
    /// How images become its input.
    preprocess: Preprocess,
    /// License lines.
    licenses: Vec<String>,
    /// Where it comes from.
    origin: String,
    /// The default prompt weights, and their name.
    mix: (String, PromptWeights),
    /// What its outputs lack of the task.
    missing: Option<&'static str>,
}

fn onnx(common: &GlobalOptions, arguments: &ExportOnnxArguments) -> Result<Outcome> {
    check_writable(&arguments.out)?;
    claim_outputs(
        &[("--out", &arguments.out)],
        &[Input::Model(&arguments.model)],
    )?;
    if arguments.outputs.is_empty()
        && let Some(meta) = finetuned::read_meta(&arguments.model)?
    {
        let Some(task) = TaskKind::named(&meta.task) else {
            bail!(
                "{}: expected a model of a known task, found one of task {}",
                arguments.model.display(),
                meta.task
            );
        };
        return with_task!(task, T => onnx_of_task::<T>(common, arguments));
    }
    let device = Device::flex();
    let mut wanted = Vec::new();
    for output in &arguments.outputs {
        if !wanted.contains(output) {
            wanted.push(*output);
        }
    }
    if wanted.is_empty() {
        wanted.push(OnnxOutput::Pooled);
    }
    let wants = |output| wanted.contains(&output);
    let identity = ("identity".to_owned(), PromptWeights::single(IDENTITY));
    let (network, facts) = if wants(OnnxOutput::Part) || wants(OnnxOutput::Attribute) {
        let made = read_student(&arguments.model, &device)?;
        for (output, missing, task) in [
            (OnnxOutput::Part, made.part.is_none(), "part"),
            (OnnxOutput::Attribute, made.attribute.is_none(), "attribute"),
        ] {
            ensure!(
                !(wants(output) && missing),
                "{} has no head of {task}s: method `{}` trains none",
                made.path.display(),
                made.recipe.method.name()
            );
        }
        let views = &made.recipe.views;
        let [height, width] = views.global_size;
        let facts = Facts {
            adapter: made.config.adapter,
            preprocess: Preprocess {
                mean: views.mean,
                std: views.std,
                ..Preprocess::imagenet(height, width)
            },
            licenses: Vec::new(),
            origin: format!("student of {}", made.path.display()),
            mix: identity,
            missing: None,
        };
        let network = ExportedNetwork {
            backbone: made.backbone,
            part: made.part.filter(|_| wants(OnnxOutput::Part)),
            attribute: made.attribute.filter(|_| wants(OnnxOutput::Attribute)),
        };
        (network, facts)
    } else {
        let (backbone, meta) = load_backbone(&arguments.model, &device)?;
        let network = ExportedNetwork {
            backbone,
            part: None,
            attribute: None,
        };
        let facts = Facts {
            preprocess: Preprocess::of(&meta),
            adapter: meta.config.adapter,
            licenses: meta.licenses,
            origin: meta.origin,
            mix: identity,
            missing: None,
        };
        (network, facts)
    };
    let fold = |network: ExportedNetwork, mix| ExportedNetwork {
        backbone: network.backbone.fold(mix),
        ..network
    };
    let forward = |network: &ExportedNetwork, images: Tensor<4>, mix: Tensor<2>| {
        network.outputs(images, mix, &wanted)
    };
    write_onnx(common, arguments, network, &fold, &forward, facts)
}

/// A fine-tuned model with its head.
fn onnx_of_task<T: Objective>(
    common: &GlobalOptions,
    arguments: &ExportOnnxArguments,
) -> Result<Outcome> {
    let model = load::<T>(&arguments.model, &[], None, &Device::flex())?;
    if let Some(size) = arguments.size {
        T::check_size(size, &model.backbone.strides())?;
    }
    let facts = Facts {
        adapter: model.meta.config.adapter,
        preprocess: model.preprocess,
        licenses: model.meta.licenses,
        origin: format!("{} fine-tuned for {}", arguments.model.display(), T::NAME),
        mix: ("the model's own".to_owned(), model.prompt),
        missing: model.task.missing_in_outputs(),
    };
    let task = model.task;
    let fold = |(backbone, head): (Backbone, T::Head), mix| (backbone.fold(mix), head);
    let forward = |(backbone, head): &(Backbone, T::Head), images: Tensor<4>, mix: Tensor<2>| {
        task.outputs(head, backbone.forward(images, mix, None))
    };
    let network = (model.backbone, model.head);
    write_onnx(common, arguments, network, &fold, &forward, facts)
}

fn write_onnx<M: Module>(
    common: &GlobalOptions,
    arguments: &ExportOnnxArguments,
    network: M,
    fold: &dyn Fn(M, PromptWeights) -> M,
    forward: &dyn Fn(&M, Tensor<4>, Tensor<2>) -> Vec<(String, Output)>,
    facts: Facts,
) -> Result<Outcome> {
    let Preprocess {
        height,
        width,
        mean,
        std,
        filter,
    } = facts.preprocess;
    let size = arguments.size.unwrap_or([height, width]);
    let plain = facts.adapter == Adapter::None;
    let (mix, prompt) = match arguments.prompt.as_deref() {
        Some("input") if plain => bail!(
            "{}: a backbone without an adapter has no prompts, so they cannot be an input\nhint: leave out --prompt",
            arguments.model.display()
        ),
        Some("input") => (
            "input `prompt_weights`: identity, part, attribute".to_owned(),
            Prompt::Input,
        ),
        Some(text) => (
            text.to_owned(),
            Prompt::Folded(text.parse::<PromptWeights>()?),
        ),
        None => (facts.mix.0, Prompt::Folded(facts.mix.1)),
    };
    let mix = if plain {
        "none: the backbone has no adapter".to_owned()
    } else {
        mix
    };
    let samples = samples(arguments.check.as_deref(), size, filter)?;
    let numbers = |values: [f32; 3]| values.map(|value| value.to_string()).join(", ");
    let metadata = [
        ("mean", numbers(mean)),
        ("std", numbers(std)),
        ("size", format!("{}x{} (height x width)", size[0], size[1])),
        ("filter", filter.to_string()),
        ("pixels", "0 to 1 before mean and std, RGB".to_owned()),
        ("prompt", mix.clone()),
        ("origin", facts.origin),
        ("licenses", facts.licenses.join("\n")),
    ];
    let metadata: BTreeMap<String, String> = metadata
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    let folded = match prompt {
        Prompt::Folded(mix) => fold(network.clone(), mix),
        Prompt::Input => network.clone(),
    };
    let options = onnx::OnnxOptions {
        size,
        batch: arguments.batch.map(|batch| batch as usize),
        prompt,
        bytes: arguments.bytes,
        mean,
        std,
        fp16: arguments.precision == ExportPrecision::Fp16,
        external: arguments.external_data,
        metadata,
        samples,
    };
    let reference = |images, mix| forward(&network, images, mix);
    let exported = onnx::export(&arguments.out, &folded, forward, &reference, &options)?;

    let mut text = format!("{}\n", exported.signature.join("\n"));
    let nodes: usize = exported.operators.values().sum();
    text.push_str(&format!(
        "opset {}, {nodes} nodes, {:.1} MB, prompt {mix}\n",
        exported.opset,
        exported.bytes as f64 / 1e6
    ));
    for check in &exported.checks {
        let worst = check.differences.values().copied().fold(0.0, f32::max);
        text.push_str(&format!(
            "checked on {} {}: largest difference {worst:.1e} (allowed {:.0e})\n",
            check.batch, check.on, exported.tolerance
        ));
    }
    if let Some(data) = &exported.external {
        text.push_str(&format!(
            "weights in {}: keep the two together\n",
            data.display()
        ));
    }
    if let Some(missing) = facts.missing {
        text.push_str(&format!("not in the file: {missing}\n"));
    }
    text.push_str(&format!("written to {}", arguments.out.display()));
    let value = json!({
        "out": arguments.out,
        "prompt": mix,
        "missing": facts.missing,
        "exported": exported,
    });
    print_result(common.json, &value, &text)?;
    Ok(Outcome::Done)
}

/// The user's images, or synthetic people: bytes [n, height, width, 3].
fn samples(
    images: Option<&str>,
    [height, width]: [usize; 2],
    filter: Filter,
) -> Result<(String, Vec<u8>)> {
    let (name, people): (&str, Vec<Rgb>) = match images {
        None => {
            let drawn =
                |index| clasp_synth::unlabeled_jpeg(0, index, height.max(64), width.max(32)).1;
            let people = (0..SAMPLES as u64).map(|index| decode(&drawn(index), &Limits::default()));
            ("synthetic people", people.collect::<Result<_, _>>()?)
        }
        Some(images) => {
            let source = open_images(&[images], false)?;
            let count = source.len().min(SAMPLES);
            ensure!(count > 0, "{images} holds no image");
            let read = |index| {
                let place = || source.place(index);
                let bytes = source.read(index).with_context(place)?;
                decode(&bytes, &Limits::default()).with_context(place)
            };
            (
                "of the given images",
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
