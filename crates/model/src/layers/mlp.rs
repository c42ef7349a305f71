//! The MLP of a transformer block.

use burn::{
    module::Module,
    nn::{LayerNorm, Linear},
    tensor::{Device, Tensor, activation::silu},
};

use super::{
    branch::{activated, add_projected},
    drop_path::DropFactors,
    init::{self, Rng},
    leaf::detached,
    matmul::project,
};
use crate::{
    kernels::{activation::Activation, mlp},
    parameters::Claims,
};

/// Two layers with GELU between, or CLIP's approximation of it; or a gated one, W₂(silu(G x) ⊙ W₁ x)
/// (SwiGLU, Shazeer 2020, arXiv 2002.05202).
#[derive(Module, Debug)]
pub struct Mlp {
    /// channels → hidden.
    pub fc1: Linear,
    /// hidden → channels.
    pub fc2: Linear,
    /// channels → hidden, of a gated one: G.
    pub fc1_g: Option<Linear>,
    #[module(skip)]
    activation: Activation,
}

impl Mlp {
    pub(crate) fn claim(mut claims: Claims, gated: bool) {
        claims.linear("fc1", true);
        claims.linear("fc2", true);
        if gated {
            claims.linear("fc1_g", true);
        }
    }

    pub(crate) fn init(channels: usize, hidden: usize, rng: &mut Rng, device: &Device) -> Self {
        Self {
            fc1: init::linear(channels, hidden, true, rng, device),
            fc2: init::linear(hidden, channels, true, rng, device),
            fc1_g: None,
            activation: Activation::Gelu,
        }
    }

    /// The same with a gate in place of the activation.
    pub(crate) fn with_gate(self, rng: &mut Rng, device: &Device) -> Self {
        let [channels, hidden] = self.fc1.weight.dims();
        Self {
            fc1_g: Some(init::linear(channels, hidden, true, rng, device)),
            ..self
        }
    }

    /// The same with other layers, and the same gate.
    pub(crate) fn with_layers(&self, fc1: Linear, fc2: Linear) -> Self {
        Self {
            fc1,
            fc2,
            fc1_g: self.fc1_g.clone(),
            activation: self.activation,
        }
    }

    /// The same with tensors that are no part of a graph.
    pub(crate) fn detached(self) -> Self {
        let detached = |layer: Linear| Linear {
            weight: detached(layer.weight),
            bias: layer.bias.map(detached),
        };
        Self {
            fc1: detached(self.fc1),
            fc2: detached(self.fc2),
            fc1_g: self.fc1_g.map(detached),
            activation: self.activation,
        }
    }

    /// The layers of a block: those of its attention, then these.
    pub(crate) fn layers_after<'a>(
        &'a mut self,
        attention: [&'a mut Linear; 2],
    ) -> impl Iterator<Item = &'a mut Linear> {
        { attention.into_iter() }
            .chain([&mut self.fc1, &mut self.fc2])
            .chain(&mut self.fc1_g)
    }

    /// The same with another activation.
    pub(crate) fn with_activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }

    pub(crate) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        project(self.hidden(x), &self.fc2)
    }

    /// residual + f · MLP(x).
    pub(crate) fn add_to(
        &self,
        residual: Tensor<3>,
        x: Tensor<3>,
        factors: &Option<DropFactors>,
    ) -> Tensor<3> {
        add_projected(residual, self.hidden(x), &self.fc2, factors)
    }

    /// What goes into the second layer.
    fn hidden(&self, x: Tensor<3>) -> Tensor<3> {
        match &self.fc1_g {
            None => activated(x, &self.fc1, self.activation),
            Some(gate) => {
                let hidden = project(x.clone(), &self.fc1);
                silu(project(x, gate)) * hidden
            }
        }
    }

    /// x + f · MLP(LN x) in one operation, for tensors that [`kernels::can_fuse`], without a gate.
    pub(crate) fn residual(
        &self,
        x: Tensor<3>,
        norm: &LayerNorm,
        epsilon: f64,
        factors: Option<DropFactors>,
    ) -> Tensor<3> {
        let parameters = mlp::MlpParameters::new(norm, &self.fc1, &self.fc2);
        let factors = factors.map(|factors| factors.values);
        mlp::mlp(x, parameters, epsilon, self.activation, factors)
    }
}
