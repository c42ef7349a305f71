//! Mixtures of experts and other adapters.

use burn::tensor::{Device, Tensor};
use clasp_model::{
    backbone::{Adapter, Backbone},
    moe::MoeKind,
    named,
    optim::{self, Norms},
    prompt::{ATTRIBUTE, PART, PromptWeights},
};

use crate::cases::{FORMS, KINDS, cases, difference, moe, pico, random, shaken, values};

#[test]
fn an_untrained_mixture_leaves_the_plain_backbone() {
    let device = Device::flex();
    for (name, form) in KINDS
        .into_iter()
        .flat_map(|name| FORMS.map(|form| (name, form)))
    {
        let plain = pico(name, Adapter::None, 1, &device);
        let adapted = pico(name, moe(form), 1, &device);
        // The plain weights load by name; the rest keeps its initialization.
        let published = values(&plain);
        let mut loaded = 0;
        let mut experts = Vec::new();
        let adapted = named::map(adapted, &mut |name, _, value| match published.get(name) {
            Some(values) => {
                loaded += 1;
                Tensor::from_floats(values.as_slice(), &device)
            }
            None => {
                experts.push(name.to_string());
                value
            }
        });
        assert_eq!(loaded, published.len());
        // The last block has experts.
        let last = if name.starts_with("swin") {
            "layers.3.blocks.1.moe."
        } else {
            "blocks.3.moe."
        };
        assert!(
            experts.iter().all(|name| name.starts_with(last)),
            "{experts:?}"
        );
        let images = random([2, 3, 128, 64], 2, &device);
        for prompt_weights in [
            PromptWeights::mean(),
            PromptWeights::single(PART),
            "identity=0.7,part=0.3".parse().unwrap(),
        ] {
            let [one, other] = [&plain, &adapted].map(|backbone| {
                backbone
                    .forward(images.clone(), prompt_weights.tensor(&device), None)
                    .map
            });
            // The differences of merged experts cancel to rounding.
            assert!(difference(one, other) < 1e-5, "{name} {form:?}");
        }
    }
}

#[test]
fn the_mix_matters_once_trained_and_folds_away() {
    let device = Device::flex();
    let images = random([2, 3, 97, 45], 2, &device);
    for (name, adapter) in cases() {
        let backbone = shaken(pico(name, adapter.clone(), 1, &device), 3);
        let forward = |backbone: &Backbone, prompt_weights: PromptWeights| {
            backbone
                .forward(images.clone(), prompt_weights.tensor(&device), None)
                .pooled
        };
        let prompt_weights: PromptWeights = "identity=0.7,part=0.3".parse().unwrap();
        let features = forward(&backbone, prompt_weights);
        let depends = !matches!(&adapter, Adapter::None);
        let other = forward(&backbone, PromptWeights::single(ATTRIBUTE));
        assert_eq!(
            difference(features.clone(), other.clone()) > 1e-4,
            depends,
            "{name} {adapter:?}"
        );

        let folded = backbone.fold(prompt_weights);
        // What is left is a plain backbone, with SOLIDER's controller where it had one.
        let solider = matches!(&adapter, Adapter::Lambda(_));
        let groups = folded.parameter_groups().unwrap();
        assert_eq!(groups.iter().any(|group| group.adapter), solider);
        // Folded, the prompt weights that are given no longer matter.
        for given in [prompt_weights, PromptWeights::single(ATTRIBUTE)] {
            let found = forward(&folded, given);
            assert!(difference(found, features.clone()) < 1e-5, "{adapter:?}");
        }
    }
}

#[test]
fn gradients_of_prompts_count_beside_the_backbones() {
    // Once, gradients of prompts were 1e-5 of the backbone's, so that prompts changed nothing.
    let device = Device::flex().autodiff();
    for (name, form) in KINDS
        .into_iter()
        .flat_map(|name| FORMS.map(|form| (name, form)))
    {
        // LayerScale begins at 1e-5, which holds every gradient within a block back alike.
        let backbone =
            named::map(
                pico(name, moe(form), 1, &device),
                &mut |name, _, value| match name.ends_with(".gamma") {
                    true => value.ones_like(),
                    false => value,
                },
            );
        let images = random([4, 3, 64, 32], 2, &device);
        let prompt_weights = PromptWeights::single(PART).tensor(&device);
        let pooled = backbone.forward(images, prompt_weights, None).pooled;
        let direction = random([1, backbone.channels()], 3, &device);
        let gradients = optim::gradients(&backbone, &mut (pooled * direction).sum().backward());
        let norms = Norms::of(&gradients);
        let groups = backbone.parameter_groups().unwrap();
        let prompts = norms.total_of(|name| groups.is_prompt(name));
        let rest = norms.total_of(|name| !groups.is_adapter(name));
        let least = if form == MoeKind::Gated { 2e-3 } else { 1e-4 };
        assert!(
            prompts > least * rest,
            "{name} {form:?}: {prompts} beside {rest}"
        );
    }
}
