//! The stages of a Swin and their blocks: window attention and an MLP.

use burn::{
    module::{Module, Param},
    nn::{LayerNorm, Linear},
    tensor::{Device, Tensor},
};

use super::{
    config::SwinConfig,
    windows::{Partition, WindowTensors, Windows},
};
#[cfg(feature = "gpu")]
use crate::gpu;
use crate::{
    kernels,
    layers::{
        self, DropFactors, EPSILON, Mlp, PatchProjection, Rng, add_projected, normalize,
        normalize_for_product, pad_end, project,
    },
    moe::{Conditioned, Moe, MoeConfig},
    parameters::{Claims, ParameterKind},
};

/// Square patches of pixels to tokens.
#[derive(Module, Debug)]
pub struct SwinPatchEmbed {
    /// The projection.
    pub proj: PatchProjection,
    /// The norm after it.
    pub norm: LayerNorm,
}

impl SwinPatchEmbed {
    pub(super) fn claim(mut claims: Claims) {
        PatchProjection::claim(claims.field("proj"));
        claims.norm("norm");
    }

    /// images: [batch, 3, height, width] → [batch, ⌈height/4⌉, ⌈width/4⌉, channels].
    pub(super) fn forward(&self, images: Tensor<4>) -> Tensor<4> {
        normalize(self.proj.forward(images), &self.norm)
    }
}

/// Halves the map, unless its stride is 1, and doubles the channels.
#[derive(Module, Debug)]
pub struct PatchMerging {
    /// Norm over the four neighbors' channels.
    pub norm: LayerNorm,
    /// 4·channels → 2·channels, without bias.
    pub reduction: Linear,
    stride: usize,
}

impl PatchMerging {
    pub(super) fn claim(mut claims: Claims) {
        claims.norm("norm");
        claims.linear("reduction", false);
    }

    pub(super) fn init([channels, stride]: [usize; 2], rng: &mut Rng, device: &Device) -> Self {
        Self {
            norm: layers::layer_norm(4 * channels, device),
            reduction: layers::linear(4 * channels, 2 * channels, false, rng, device),
            stride,
        }
    }

    /// x: [batch, height, width, channels] → [batch, ⌈height/stride⌉, ⌈width/stride⌉, 2·channels].
    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        // The neighbors in the order (0,0), (1,0), (0,1), (1,1): columns outside, rows inside.
        let neighbors = if self.stride == 1 {
            let [_, height, width, _] = x.dims();
            // One row and one column of zeros at the end, as MMDetection's "corner" padding.
            let x = pad_end(pad_end(x, 1, height + 1), 2, width + 1);
            let from = |row, column| x.clone().narrow(1, row, height).narrow(2, column, width);
            Tensor::cat(vec![from(0, 0), from(1, 0), from(0, 1), from(1, 1)], 3)
        } else {
            let x = pad_end(pad_end(x, 1, 2), 2, 2);
            let [batch, height, width, channels] = x.dims();
            x.reshape([batch, height / 2, 2, width / 2, 2, channels])
                .permute([0, 1, 3, 4, 2, 5])
                .reshape([batch, height / 2, width / 2, 4 * channels])
        };
        project(
            normalize_for_product(neighbors, &self.norm),
            &self.reduction,
        )
    }
}

/// Blocks at one resolution, after a halving in all stages but the first.
#[derive(Module, Debug)]
pub struct SwinStage {
    /// The halving before the blocks.
    pub downsample: Option<PatchMerging>,
    /// The blocks; the odd ones have shifted windows.
    pub blocks: Vec<SwinBlock>,
}

/// Window attention, an MLP and, in conditional blocks, the mixture of experts.
#[derive(Module, Debug)]
pub struct SwinBlock {
    /// LN1.
    pub norm1: LayerNorm,
    /// Window attention.
    pub attn: WindowAttention,
    /// LN2.
    pub norm2: LayerNorm,
    /// The MLP.
    pub mlp: Mlp,
    /// The mixture of experts of a conditional block.
    pub moe: Option<Moe>,
    pub(super) drop_path: f64,
}

impl SwinBlock {
    /// The layers of attention and MLP.
    pub(super) fn layers_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let attention = [&mut self.attn.qkv, &mut self.attn.proj];
        self.mlp.layers_after(attention)
    }

    pub(super) fn claim(experts: Option<&MoeConfig>, mut claims: Claims) {
        claims.norm("norm1");
        WindowAttention::claim(claims.field("attn"));
        claims.norm("norm2");
        Mlp::claim(claims.field("mlp"), false);
        if let Some(experts) = experts {
            experts.claim(claims.field("moe"));
        }
    }

    pub(super) fn init(
        config: &SwinConfig,
        [stage, index]: [usize; 2],
        drop_path: f64,
        channels: usize,
        rng: &mut Rng,
        device: &Device,
    ) -> Self {
        let heads = config.sizes.num_heads[stage];
        let hidden = config.sizes.mlp_ratio * channels;
        let plain = Self {
            norm1: layers::layer_norm(channels, device),
            attn: WindowAttention::init(
                channels,
                heads,
                config.sizes.table_rows(stage),
                rng,
                device,
            ),
            norm2: layers::layer_norm(channels, device),
            mlp: Mlp::init(channels, hidden, rng, device),
            moe: None,
            drop_path,
        };
        // Drawn last, so that the plain part of a block is the same with and without experts.
        let moe = config
            .experts(stage, index)
            .map(|moe| moe.init(channels, hidden, rng, device));
        Self { moe, ..plain }
    }

    /// The same for prompt weights [1, prompts], as a block without prompts.
    pub(super) fn fold(self, prompt_weights: &Tensor<2>) -> Self {
        let Some(moe) = &self.moe else {
            return self;
        };
        let conditioned = moe.condition([&self.norm1, &self.norm2], &self.mlp, prompt_weights);
        let Conditioned { norm1, norm2, mlp } = conditioned.detached();
        Self {
            norm1,
            norm2,
            mlp,
            moe: None,
            ..self
        }
    }

    /// x: [batch, height, width, channels], prompt_weights: [1, prompts].
    pub(super) fn forward(
        &self,
        x: Tensor<4>,
        windows: &Windows,
        prompt_weights: &Tensor<2>,
        [factors, later]: [Option<DropFactors>; 2],
    ) -> Tensor<4> {
        let norms = [&self.norm1, &self.norm2];
        let conditioned =
            { self.moe.as_ref() }.map(|moe| moe.condition(norms, &self.mlp, prompt_weights));
        let (norm1, norm2, mlp) = match &conditioned {
            Some(Conditioned { norm1, norm2, mlp }) => (norm1, norm2, mlp),
            None => (&self.norm1, &self.norm2, &self.mlp),
        };
        let attn = &self.attn;
        let [batch, height, width, channels] = x.dims();
        let flat = [batch, height * width, channels];
        let table = attn.table(windows);
        let x = match &windows.partition {
            Partition::Fused(grid) => {
                let x = kernels::attention::attention(
                    x.reshape(flat),
                    attn.parameters(norm1, table),
                    EPSILON,
                    attn.heads,
                    grid.clone(),
                    factors.map(|factors| factors.values),
                );
                mlp.residual(x, norm2, EPSILON, later)
            }
            partition => {
                let normal = normalize_for_product(x.clone(), norm1);
                let attended = attn.attend(normal, table, partition);
                let x = add_projected(x, attended, &attn.proj, &factors).reshape(flat);
                let normal = normalize_for_product(x.clone(), norm2);
                mlp.add_to(x, normal, &later)
            }
        };
        x.reshape([batch, height, width, channels])
    }
}

/// Self-attention within windows, with a learned bias per relative position and head.
#[derive(Module, Debug)]
pub struct WindowAttention {
    /// [(2·rows − 1)·(2·columns − 1), heads] of a window.
    pub relative_position_bias_table: Param<Tensor<2>>,
    /// channels → 3·channels.
    pub qkv: Linear,
    /// channels → channels.
    pub proj: Linear,
    heads: usize,
}

impl WindowAttention {
    fn claim(mut claims: Claims) {
        claims.parameter("relative_position_bias_table", ParameterKind::PositionBias);
        claims.linear("qkv", true);
        claims.linear("proj", true);
    }

    fn init(
        channels: usize,
        heads: usize,
        table_rows: usize,
        rng: &mut Rng,
        device: &Device,
    ) -> Self {
        assert_eq!(channels % heads, 0, "{channels} channels for {heads} heads");
        Self {
            relative_position_bias_table: layers::trunc_normal(
                [table_rows, heads],
                0.02,
                rng,
                device,
            ),
            qkv: layers::linear(channels, 3 * channels, true, rng, device),
            proj: layers::linear(channels, channels, true, rng, device),
            heads,
        }
    }

    /// The bias table of windows, which may be smaller than those of the stored one.
    fn table(&self, windows: &Windows) -> Tensor<2> {
        let stored = self.relative_position_bias_table.val();
        match &windows.resampling {
            None => stored,
            Some(resampling) => resampling.apply(stored),
        }
    }

    /// What the fused operation takes.
    fn parameters(
        &self,
        norm: &LayerNorm,
        table: Tensor<2>,
    ) -> kernels::attention::AttentionParameters {
        kernels::attention::AttentionParameters::new(norm, &self.qkv, &self.proj, Some(table))
    }

    /// The weighted values, before their projection. x: [batch, height, width, channels], the same out;
    /// table: that of the windows.
    fn attend(&self, x: Tensor<4>, table: Tensor<2>, partition: &Partition) -> Tensor<4> {
        match partition {
            Partition::Fused(_) => unreachable!("the fused operation has the norm in it"),
            #[cfg(feature = "gpu")]
            Partition::Kernel(windows) => self.attend_by_kernel(x, table, windows),
            Partition::Graph(windows) => self.attend_by_graph(x, table, windows),
        }
    }

    #[cfg(feature = "gpu")]
    fn attend_by_kernel(
        &self,
        x: Tensor<4>,
        table: Tensor<2>,
        windows: &gpu::WindowPlaces,
    ) -> Tensor<4> {
        let [batch, height, width, channels] = x.dims();
        let bias = match &self.qkv.bias {
            Some(bias) => bias.val(),
            None => Tensor::zeros([3 * channels], &x.device()),
        };
        let qkv = layers::product_as_computed(x, self.qkv.weight.val());
        let qkv = qkv.reshape([batch, height * width, 3 * channels]);
        let output = gpu::window_attention(qkv, bias, table, windows);
        output.reshape([batch, height, width, channels])
    }

    fn attend_by_graph(
        &self,
        x: Tensor<4>,
        table: Tensor<2>,
        windows: &WindowTensors,
    ) -> Tensor<4> {
        let [batch, _, _, channels] = x.dims();
        let [rows, columns] = windows.cut.count();
        let ([down, right], area) = (windows.cut.window, windows.cut.area());
        let (heads, width) = (self.heads, channels / self.heads);

        // The bias comes after the padding: a padding position has no input, only the bias.
        let qkv = windows
            .cut
            .arrange(layers::product(x, self.qkv.weight.val(), None));
        let qkv = match &self.qkv.bias {
            Some(bias) => qkv + bias.val().reshape([1, 1, 1, 3 * channels]),
            None => qkv,
        };
        // One permutation: [3, batch, window rows, window columns, heads, rows, columns, width].
        let qkv = qkv
            .reshape([batch, rows, down, columns, right, 3, heads, width])
            .permute([5, 0, 1, 3, 6, 2, 4, 7]);
        // With one bias for all windows they are part of the batch; a mask sets them apart.
        let bias = self.bias(table, windows);
        let groups = if windows.mask.is_some() {
            batch
        } else {
            batch * rows * columns
        };
        let merged = batch * rows * columns * heads / groups;
        let qkv = three(qkv.reshape([3, groups, merged, area, width]));
        let output = layers::attend(qkv, Some(bias))
            .reshape([batch, rows, columns, heads, down, right, width])
            .permute([0, 1, 4, 2, 5, 3, 6])
            .reshape([batch, rows * down, columns * right, channels]);
        windows.cut.restore(output)
    }

    /// What is added to the scores: [1, heads, area, area], or [1, windows·heads, area, area] with
    /// a mask.
    fn bias(&self, table: Tensor<2>, windows: &WindowTensors) -> Tensor<4> {
        let area = windows.cut.area();
        let bias = table
            .select(0, windows.bias_index.clone())
            .reshape([area, area, self.heads])
            .permute([2, 0, 1])
            .unsqueeze::<4>();
        match &windows.mask {
            None => bias,
            Some(mask) => {
                let count = mask.dims()[0];
                (bias + mask.clone()).reshape([1, count * self.heads, area, area])
            }
        }
    }
}

/// Splits [3, a, b, c, d] into three of [a, b, c, d].
fn three(x: Tensor<5>) -> [Tensor<4>; 3] {
    [0, 1, 2].map(|index| x.clone().narrow(0, index, 1).squeeze_dim::<4>(0))
}
