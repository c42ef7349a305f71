//! Who published a checkpoint: layout, preprocessing, licenses.

use std::fmt;
use std::str::FromStr;

use clasp_model::backbone::Sizes;
use clasp_model::swin::WindowPadding;

use super::names::Layout;
use super::windows::image_size;

/// ImageNet's mean and standard deviation, of values 0 to 1.
const IMAGENET: ([f32; 3], [f32; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
/// CLIP's mean and standard deviation.
const CLIP: ([f32; 3], [f32; 3]) = (
    [0.481_454_66, 0.457_827_5, 0.408_210_73],
    [0.268_629_54, 0.261_302_6, 0.275_777_1],
);
/// What SOLIDER-REID's recipes normalize with.
const HALF: ([f32; 3], [f32; 3]) = ([0.5; 3], [0.5; 3]);

/// Who published a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointSource {
    /// This program.
    Clasp,
    /// SOLIDER's pre-training: student, teacher, heads, optimizer.
    SoliderFull,
    /// SOLIDER, converted: the teacher alone.
    Solider,
    /// A task of the SOLIDER repositories: the backbone with a head of re-identification,
    /// attributes, ….
    SoliderTask,
    /// OpenMMLab's Swin, without SOLIDER's controller.
    OpenMmlabSwin,
    /// Microsoft's Swin, ImageNet-1k or -22k.
    MicrosoftSwin,
    /// timm's Swin.
    TimmSwin,
    /// Microsoft's Swin, or another, in the names of Hugging Face's transformers.
    TransformersSwin,
    /// DINO's ViT: its training checkpoint.
    Dino,
    /// DINOv2's ViT.
    DinoV2,
    /// DINOv3's ViT, or another with its rotary positions.
    DinoV3,
    /// TransReID-SSL's ViT.
    TransReidSsl,
    /// PASS's ViT.
    Pass,
    /// HAP's ViT.
    Hap,
    /// MAE's ViT.
    Mae,
    /// timm's ViT, or another of the same names: DINO's backbone alone, DeiT.
    TimmVit,
    /// The image tower of a CLIP of OpenAI, in the names of Hugging Face or OpenCLIP: QuickGELU.
    ClipOpenAi,
    /// The image tower of another CLIP, in the same names: GELU.
    ClipOpen,
}

impl CheckpointSource {
    /// Every source.
    pub const ALL: [Self; 18] = [
        Self::Clasp,
        Self::SoliderFull,
        Self::Solider,
        Self::SoliderTask,
        Self::OpenMmlabSwin,
        Self::MicrosoftSwin,
        Self::TimmSwin,
        Self::TransformersSwin,
        Self::Dino,
        Self::DinoV2,
        Self::DinoV3,
        Self::TransReidSsl,
        Self::Pass,
        Self::Hap,
        Self::Mae,
        Self::TimmVit,
        Self::ClipOpenAi,
        Self::ClipOpen,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clasp => "clasp",
            Self::SoliderFull => "solider-full",
            Self::Solider => "solider",
            Self::SoliderTask => "solider-task",
            Self::OpenMmlabSwin => "openmmlab-swin",
            Self::MicrosoftSwin => "microsoft-swin",
            Self::TimmSwin => "timm-swin",
            Self::TransformersSwin => "transformers-swin",
            Self::Dino => "dino",
            Self::DinoV2 => "dinov2",
            Self::DinoV3 => "dinov3",
            Self::TransReidSsl => "transreid-ssl",
            Self::Pass => "pass",
            Self::Hap => "hap",
            Self::Mae => "mae",
            Self::TimmVit => "timm-vit",
            Self::ClipOpenAi => "clip-openai",
            Self::ClipOpen => "clip-open",
        }
    }

    /// In words.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Clasp => "backbone of clasp",
            Self::SoliderFull => "SOLIDER, training checkpoint",
            Self::Solider => "SOLIDER, converted",
            Self::SoliderTask => "task checkpoint of a SOLIDER repository",
            Self::OpenMmlabSwin => "Swin in OpenMMLab's names",
            Self::MicrosoftSwin => "Swin of Microsoft (ImageNet)",
            Self::TimmSwin => "Swin of timm",
            Self::TransformersSwin => "Swin of Hugging Face's transformers",
            Self::Dino => "DINO ViT, training checkpoint",
            Self::DinoV2 => "DINOv2 ViT",
            Self::DinoV3 => "DINOv3 ViT, or another of its names",
            Self::TransReidSsl => "TransReID-SSL ViT",
            Self::Pass => "PASS ViT, its part tokens as registers",
            Self::Hap => "HAP ViT",
            Self::Mae => "MAE ViT",
            Self::TimmVit => "ViT of timm, or of DINO or DeiT, whose names are the same",
            Self::ClipOpenAi => "image tower of OpenAI's CLIP",
            Self::ClipOpen => "image tower of a CLIP with GELU",
        }
    }

    /// How its tensors are named and laid out.
    pub fn layout(self) -> Layout {
        match self {
            Self::SoliderFull | Self::Solider | Self::SoliderTask | Self::OpenMmlabSwin => {
                Layout::OpenMmlabSwin
            }
            Self::MicrosoftSwin | Self::TransformersSwin => Layout::MicrosoftSwin,
            Self::Clasp | Self::TimmSwin => Layout::TimmSwin,
            Self::Dino
            | Self::DinoV2
            | Self::DinoV3
            | Self::TransReidSsl
            | Self::Pass
            | Self::Hap
            | Self::Mae
            | Self::TimmVit
            | Self::ClipOpenAi
            | Self::ClipOpen => Layout::Vit,
        }
    }

    /// How windows lie on a map in its program. Microsoft's own code takes no images but those it
    /// was made for; at others its weights are run by timm.
    pub(crate) fn window_padding(self) -> WindowPadding {
        match self.layout() {
            Layout::OpenMmlabSwin => WindowPadding::Detection,
            Layout::TimmSwin if self == Self::Clasp => WindowPadding::Detection,
            Layout::MicrosoftSwin if self == Self::TransformersSwin => WindowPadding::Transformers,
            Layout::MicrosoftSwin | Layout::TimmSwin => WindowPadding::Timm,
            Layout::Vit => WindowPadding::default(),
        }
    }

    /// Mean and standard deviation that its recipes normalize images with. They do not show in the
    /// file.
    pub(crate) fn normalization(self, prefix: &str) -> ([f32; 3], [f32; 3]) {
        match self {
            // Re-identification keeps its backbone as `base`.
            Self::SoliderTask if prefix.ends_with("base.") => HALF,
            Self::ClipOpenAi | Self::ClipOpen => CLIP,
            _ => IMAGENET,
        }
    }

    /// Height and width of the images of its recipes, where none are asked for.
    pub(crate) fn size(self, sizes: &Sizes, prefix: &str) -> [usize; 2] {
        match (self, sizes) {
            (Self::SoliderTask, _) if prefix.ends_with("base.") => [384, 128],
            (Self::SoliderFull | Self::Solider | Self::SoliderTask, _) => [256, 128],
            (_, Sizes::Swin(sizes)) => image_size(sizes),
            (_, Sizes::Vit(sizes)) => sizes.image_size,
        }
    }

    /// What is known of the licenses: of the code, of the weights, of the data. Facts stated by the
    /// publishers; where a file may come from several, that is said.
    pub fn licenses(self) -> [&'static str; 3] {
        match self {
            Self::Clasp => [
                "code: clasp, MIT OR Apache-2.0",
                "weights: those of the images and labels that they were trained on",
                "data: see the recipe",
            ],
            Self::SoliderFull | Self::Solider => [
                "code: SOLIDER, Apache-2.0",
                "weights: none is recorded here apart from the code's; ask the authors",
                "data: LUPerson; ask its authors for its terms",
            ],
            Self::SoliderTask => [
                "code: SOLIDER-REID and -HumanParsing MIT; -PersonAttributeRecognition, -Pose and -PedDet Apache-2.0; \
                 -PersonSearch states none",
                "weights: none is recorded here apart from the code's; ask the authors",
                "data: LUPerson, then the task's data set; each has its terms",
            ],
            Self::OpenMmlabSwin => [
                "code: OpenMMLab, Apache-2.0",
                "weights: not stated in the file; ask who published it",
                "data: not stated in the file",
            ],
            Self::MicrosoftSwin => [
                "code: Swin-Transformer, MIT",
                "weights: MIT, as timm records it",
                "data: ImageNet-1k or -22k, under its terms of access",
            ],
            Self::TimmSwin => [
                "code: timm, Apache-2.0",
                "weights: Microsoft's are MIT, as timm records it; see the model card of others",
                "data: ImageNet-1k or -22k, under its terms of access",
            ],
            Self::TransformersSwin => [
                "code: transformers, Apache-2.0",
                "weights: see the model card; Microsoft's are MIT, as timm records it",
                "data: see the model card; ImageNet-1k or -22k, under its terms of access, for Microsoft's",
            ],
            _ => self.vit_licenses(),
        }
    }

    /// The same of those that publish ViTs.
    fn vit_licenses(self) -> [&'static str; 3] {
        match self {
            Self::Dino => [
                "code: DINO, Apache-2.0",
                "weights: none is recorded here apart from the code's; ask the authors",
                "data: ImageNet-1k for the published ones, under its terms of access",
            ],
            Self::DinoV2 => [
                "code: DINOv2, Apache-2.0",
                "weights: Apache-2.0, as timm records it",
                "data: LVD-142M, which is not published",
            ],
            Self::DinoV3 => [
                "code: timm or transformers, Apache-2.0; Meta's own is under the DINOv3 License",
                "weights: not stated in the file; Meta's are under the DINOv3 License, and others have the same names",
                "data: not stated in the file",
            ],
            Self::TransReidSsl => [
                "code: TransReID-SSL, MIT",
                "weights: none is recorded here apart from the code's; ask the authors",
                "data: LUPerson; ask its authors for its terms",
            ],
            Self::Pass => [
                "code: PASS-reID, Apache-2.0",
                "weights: none is recorded here apart from the code's; ask the authors",
                "data: LUPerson; ask its authors for its terms",
            ],
            Self::Hap => [
                "code: HAP states none",
                "weights: none is recorded here apart from the code's; ask the authors",
                "data: LUPerson; ask its authors for its terms",
            ],
            Self::Mae => [
                "code: MAE, CC BY-NC 4.0",
                "weights: CC BY-NC 4.0, as timm records it",
                "data: ImageNet-1k, under its terms of access",
            ],
            Self::ClipOpenAi => [
                "code: CLIP, MIT",
                "weights: none is recorded here apart from the code's; see the model card",
                "data: not published",
            ],
            Self::ClipOpen => [
                "code: OpenCLIP, MIT",
                "weights: see the model card",
                "data: see the model card",
            ],
            _ => [
                "code: timm, Apache-2.0",
                "weights: see the model card; the names are the same for timm's and DINO's",
                "data: see the model card",
            ],
        }
    }
}

impl fmt::Display for CheckpointSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for CheckpointSource {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.map(Self::name);
        match known.iter().position(|known| *known == name) {
            Some(index) => Ok(Self::ALL[index]),
            None => Err(format!(
                "expected one of {}, found `{name}`",
                known.join(", ")
            )),
        }
    }
}
