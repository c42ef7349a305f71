//! What a backbone says about each of its parameters to those who train it: a layer, for learning
//! rates that decay with depth, and a kind, for weight decay and for what is trained. The
//! counterpart of timm's `group_matcher` and `no_weight_decay`.
//!
//! Each module claims its own parameters beside its fields, in a function called `claim`; a
//! backbone's configuration puts them together. A parameter that no module claims is an error
//! ([`crate::backbone::Backbone::parameter_groups`]), never a default.

use std::collections::BTreeMap;
use std::fmt::Display;

use burn::module::Module;

use crate::{error::ModelError, named, optim::decays};

/// What a parameter is to an optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterKind {
    /// A matrix or a convolution.
    Weight,
    /// What is added: of a layer or of a norm.
    Bias,
    /// A factor a channel: of a norm, or LayerScale.
    Norm,
    /// A table of relative position biases.
    PositionBias,
    /// Position embeddings, class, register and mask tokens.
    Embedding,
    /// A prompt of a conditional block.
    Prompt,
}

impl ParameterKind {
    /// Whether weight decay acts on it in pre-training: not on biases, norms and prompts.
    pub fn decays(self) -> bool {
        match self {
            Self::Weight | Self::PositionBias | Self::Embedding => true,
            Self::Bias | Self::Norm | Self::Prompt => false,
        }
    }
}

/// What holds of one parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterGroup {
    /// Its name in the backbone, `layers.0.blocks.1.attn.qkv.weight`.
    pub name: String,
    /// 0 for what makes tokens of an image, then one for each block, then one for the last norm.
    pub layer: usize,
    /// Its kind.
    pub kind: ParameterKind,
    /// Whether it belongs to an adapter, prompts included.
    pub adapter: bool,
}

/// The groups of all parameters of a backbone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterGroups {
    /// What stands in front of the names that are asked for.
    prefix: String,
    /// By name in the backbone.
    groups: BTreeMap<String, ParameterGroup>,
    layers: usize,
}

impl ParameterGroups {
    /// Of a network of `layers` layers, as `claim` collects them.
    ///
    /// # Panics
    /// When two parameters have one name, or a layer is not among `layers`.
    pub(crate) fn collect(layers: usize, claim: impl FnOnce(&mut Claims)) -> Self {
        let mut list = Vec::new();
        claim(&mut Claims {
            list: &mut list,
            prefix: String::new(),
            layer: 0,
            adapter: false,
        });
        let mut groups = BTreeMap::new();
        for group in list {
            assert!(
                group.layer < layers,
                "`{}` in layer {} of {layers}",
                group.name,
                group.layer
            );
            let name = group.name.clone();
            let before = groups.insert(name, group);
            assert!(before.is_none(), "claimed twice: {before:?}");
        }
        Self {
            prefix: String::new(),
            groups,
            layers,
        }
    }

    /// The same with a mask token, `mask_token`, which a network has only while it learns from
    /// masked patches.
    pub(crate) fn with_mask_token(mut self) -> Self {
        let name = "mask_token".to_owned();
        let group = ParameterGroup {
            name: name.clone(),
            layer: 0,
            kind: ParameterKind::Embedding,
            adapter: false,
        };
        self.groups.insert(name, group);
        self
    }

    /// Checks them against the parameters of a module.
    ///
    /// # Errors
    /// A parameter is not claimed, or one is claimed that the module does not have.
    pub(crate) fn check<M: Module>(&self, module: &M) -> Result<(), ModelError> {
        let mut names = Vec::new();
        named::visit(module, &mut |name, _, _| names.push(name.to_owned()));
        if let Some(name) = names.iter().find(|name| !self.groups.contains_key(*name)) {
            return Err(ModelError::Unclaimed { name: name.clone() });
        }
        let claimed = self.groups.keys().find(|name| !names.contains(name));
        match claimed {
            Some(name) => Err(ModelError::Unexpected { name: name.clone() }),
            None => Ok(()),
        }
    }

    /// The same for a network in which the backbone's parameters are called `prefix` and their
    /// name.
    pub fn with_prefix(self, prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            ..self
        }
    }

    /// The group of a parameter; none if its name does not begin with the prefix, as that of a
    /// head.
    ///
    /// # Panics
    /// When the name begins with the prefix and the backbone has no such parameter.
    pub fn get(&self, name: &str) -> Option<&ParameterGroup> {
        let inner = name.strip_prefix(&self.prefix)?;
        let group = self.groups.get(inner);
        assert!(
            group.is_some(),
            "the backbone claims no parameter `{inner}`"
        );
        group
    }

    /// Whether a parameter is a prompt of the backbone.
    ///
    /// # Panics
    /// As [`ParameterGroups::get`].
    pub fn is_prompt(&self, name: &str) -> bool {
        { self.get(name) }.is_some_and(|group| group.kind == ParameterKind::Prompt)
    }

    /// Whether weight decay acts on a parameter of the backbone ([`ParameterKind::decays`]) or of a
    /// head ([`decays`]).
    ///
    /// # Panics
    /// As [`ParameterGroups::get`].
    pub fn decays(&self, name: &str, shape: &[usize]) -> bool {
        { self.get(name) }.map_or_else(|| decays(name, shape), |group| group.kind.decays())
    }

    /// Whether the backbone has a parameter of that name, without the prefix, and it belongs to an
    /// adapter.
    pub fn is_adapter(&self, name: &str) -> bool {
        { self.groups.get(name) }.is_some_and(|group| group.adapter)
    }

    /// All groups, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &ParameterGroup> {
        self.groups.values()
    }

    /// Number of layers: two more than there are blocks.
    pub fn layers(&self) -> usize {
        self.layers
    }
}

/// Where a module claims its parameters: collects them under the names and the layer of the modules
/// around it.
pub(crate) struct Claims<'a> {
    list: &'a mut Vec<ParameterGroup>,
    prefix: String,
    layer: usize,
    adapter: bool,
}

impl Claims<'_> {
    /// Those of a field.
    pub fn field(&mut self, name: impl Display) -> Claims<'_> {
        Claims {
            prefix: format!("{}{name}.", self.prefix),
            list: self.list,
            layer: self.layer,
            adapter: self.adapter,
        }
    }

    /// The same in another layer.
    pub fn at(self, layer: usize) -> Self {
        Self { layer, ..self }
    }

    /// Those of this module that are in another layer.
    pub fn in_layer(&mut self, layer: usize) -> Claims<'_> {
        Claims {
            list: self.list,
            prefix: self.prefix.clone(),
            layer,
            adapter: self.adapter,
        }
    }

    /// The same as a part of an adapter.
    pub fn of_adapter(self) -> Self {
        Self {
            adapter: true,
            ..self
        }
    }

    /// Claims a parameter.
    pub fn parameter(&mut self, name: &str, kind: ParameterKind) {
        self.list.push(ParameterGroup {
            name: format!("{}{name}", self.prefix),
            layer: self.layer,
            kind,
            adapter: self.adapter,
        });
    }

    /// Claims `weight` and `bias` of this module.
    pub fn weight_and_bias(&mut self) {
        self.parameter("weight", ParameterKind::Weight);
        self.parameter("bias", ParameterKind::Bias);
    }

    /// Claims a linear layer.
    pub fn linear(&mut self, name: &str, bias: bool) {
        let mut layer = self.field(name);
        layer.parameter("weight", ParameterKind::Weight);
        if bias {
            layer.parameter("bias", ParameterKind::Bias);
        }
    }

    /// Claims a layer norm.
    pub fn norm(&mut self, name: &str) {
        let mut norm = self.field(name);
        norm.parameter("weight", ParameterKind::Norm);
        norm.parameter("bias", ParameterKind::Bias);
    }
}
