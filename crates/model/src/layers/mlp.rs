//! The MLP of a transformer block.

use burn::{
    module::Module,
    nn::{LayerNorm, Linear},
    tensor::{Device, Tensor},
};

use super::{
    drop_path::DropFactors,
    init::{self, Rng},
    leaf::detached,
    matmul::project,
};
use crate::{
    kernels::{activation::Activation, mlp},
    parameters::Claims,
};

/// Two layers with GELU between, or CLIP's approximation of it.
#[derive(Module, Debug)]
pub struct Mlp {
    /// channels → hidden.
    pub fc1: Linear,
    /// hidden → channels.
    pub fc2: Linear,
    #[module(skip)]
    activation: Activation,
}

impl Mlp {
    pub(crate) fn claim(mut claims: Claims) {
        claims.linear("fc1", true);
        claims.linear("fc2", true);
    }

    pub(crate) fn init(channels: usize, hidden: usize, rng: &mut Rng, device: &Device) -> Self {
        Self {
            fc1: init::linear(channels, hidden, true, rng, device),
            fc2: init::linear(hidden, channels, true, rng, device),
            activation: Activation::Gelu,
        }
    }

    /// The same with other layers.
    pub(crate) fn with_layers(&self, fc1: Linear, fc2: Linear) -> Self {
        let activation = self.activation;
        Self {
            fc1,
            fc2,
            activation,
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
            activation: self.activation,
        }
    }

    /// The same with another activation.
    pub(crate) fn with_activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }

    pub(crate) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let hidden = project(x, &self.fc1);
        project(self.activation.forward(hidden), &self.fc2)
    }

    /// x + f · MLP(LN x) in one operation, for tensors that [`kernels::can_fuse`].
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
