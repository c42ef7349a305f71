//! What the training loops of several ranks share besides the exchange itself
//! ([`crate::collective`]): the machine that a plan is made for, and checks that all ranks train the
//! same network.

use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::check::{self, InvalidValue};
use crate::checkpoints;
use crate::collective::{Collective, CollectiveError};
use crate::control::Control;
use crate::error::RunError;
use crate::folder::{NonFinite, RunFolder};
use crate::recipe::Auto;

/// Why a step was not done; nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// A loss or the norm of the gradients is not finite, on all ranks alike.
    #[error(transparent)]
    NonFinite(#[from] NonFinite),
    /// A rank is gone.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
}

/// What a plan depends on besides the recipe and the number of images.
///
/// `bf16` matters to plans that choose a precision: those of pre-training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Processes that train together.
    pub ranks: usize,
    /// Cores that each may use.
    pub cores: usize,
    /// Whether the CPU computes.
    pub on_cpu: bool,
    /// Whether the device is not the CPU and computes in bf16.
    pub bf16: bool,
}

impl Machine {
    /// That of one process with `cores` cores, without a device that computes in bf16.
    pub fn alone(cores: usize, on_cpu: bool) -> Self {
        Self {
            ranks: 1,
            cores,
            on_cpu,
            bf16: false,
        }
    }

    /// The machine of all ranks, so that each makes the same plan: the fewest cores, and bf16 only if
    /// all have it.
    ///
    /// # Errors
    ///
    /// Some compute on the CPU and others do not, or a rank is gone.
    pub fn of_all(self, ranks: &dyn Collective) -> Result<Self, CollectiveError> {
        let kind = if self.on_cpu {
            "the CPU"
        } else {
            "an accelerator"
        };
        ranks.agree("the kind of device", kind)?;
        let machines = ranks.gather(&self)?;
        Ok(Self {
            ranks: machines.len(),
            cores: { machines.iter() }.fold(self.cores, |least, one| least.min(one.cores)),
            bf16: machines.iter().all(|one| one.bf16),
            on_cpu: self.on_cpu,
        })
    }

    /// Replicas of the network over all ranks, `run.replicas` of a recipe. Automatic: on the CPU as
    /// many as cores, if they divide the `images` that are computed at once, which `what` names, and
    /// leave `least` images or more for each.
    ///
    /// # Errors
    ///
    /// They are no multiple of the ranks, or do not divide the images.
    pub fn replicas(
        self,
        replicas: &mut Auto<usize>,
        [images, least]: [usize; 2],
        what: &str,
    ) -> Result<usize, InvalidValue> {
        const KEY: &str = "run.replicas";
        let ranks = self.ranks;
        let most = if self.on_cpu { self.cores } else { 1 };
        let automatic = (1..=most.clamp(1, check::MOST_THREADS))
            .rev()
            .find(|count| {
                let replicas = ranks * count;
                images.is_multiple_of(replicas) && images / replicas >= least
            });
        let replicas = replicas.resolve(ranks * automatic.unwrap_or(1));
        check::count(KEY, replicas, [1, ranks * check::MOST_THREADS])?;
        if !replicas.is_multiple_of(ranks) {
            let expected = format!("a multiple of the {ranks} ranks");
            return Err(InvalidValue::new(KEY, expected, replicas));
        }
        if !images.is_multiple_of(replicas) {
            let expected = format!("a divisor of {what} = {images}");
            return Err(InvalidValue::new(KEY, expected, replicas));
        }
        Ok(replicas)
    }
}

/// Checks that all ranks run the same version of clasp and have the same number of images, from which
/// values of a recipe follow, and the same text of a recipe, compared line by line so that the error
/// shows the key.
///
/// # Errors
///
/// Names the first rank that differs from rank 0.
pub fn agree_on_recipe(
    recipe: &str,
    images: usize,
    ranks: &dyn Collective,
) -> Result<(), CollectiveError> {
    ranks.agree("the version of clasp", env!("CARGO_PKG_VERSION"))?;
    ranks.agree("the number of images", &images.to_string())?;
    let lines: Vec<String> = recipe.lines().map(str::to_owned).collect();
    let first: Vec<String> = ranks.of_first(&lines)?;
    let differs = (0..first.len().max(lines.len())).find(|at| first.get(*at) != lines.get(*at));
    let line = |lines: &[String], at: usize| lines.get(at).cloned().unwrap_or_default();
    let found = differs.map(|at| [line(&first, at), line(&lines, at)]);
    let all: Vec<Option<[String; 2]>> = ranks.gather(&found)?;
    for (rank, found) in all.into_iter().enumerate() {
        if let Some([expected, found]) = found {
            return Err(CollectiveError::Disagree {
                what: "the recipe",
                rank,
                expected,
                found,
            });
        }
    }
    Ok(())
}

/// The checkpoint that rank 0 resumes from, in this rank's view of the run folder.
///
/// # Errors
///
/// This rank has no such file, or a rank is gone.
pub fn checkpoint_of_first(
    own: Option<PathBuf>,
    folder: &Path,
    ranks: &dyn Collective,
) -> Result<Option<PathBuf>, RunError> {
    if ranks.is_alone() {
        return Ok(own);
    }
    let name = |path: &PathBuf| Some(path.file_name()?.to_string_lossy().into_owned());
    let Some(expected) = ranks.of_first(&own.as_ref().and_then(name))? else {
        return Ok(None);
    };
    // A name among those that are there, and no path that another process names.
    let mut paths = checkpoints::list(folder)?.into_iter();
    match paths.find(|path| name(path).as_ref() == Some(&expected)) {
        Some(path) => Ok(Some(path)),
        None => Err(CollectiveError::Disagree {
            what: "the newest checkpoint; all ranks must reach the run folder",
            rank: ranks.rank().index,
            expected,
            found: format!("none of that name in {}", folder.display()),
        }
        .into()),
    }
}

/// Warns if the state of a rank has become another than that of rank 0, which is saved. `digest` gives
/// that of this rank after `step` steps.
///
/// # Errors
///
/// A rank is gone, or the warning cannot be written.
pub fn check_digests(
    run: Option<&mut RunFolder>,
    step: u64,
    digest: impl FnOnce() -> String,
    ranks: &dyn Collective,
    control: &mut Control<'_>,
) -> Result<(), RunError> {
    if ranks.is_alone() {
        return Ok(());
    }
    let digests = ranks.gather(&digest())?;
    let differs = digests.iter().position(|digest| *digest != digests[0]);
    if let (Some(run), Some(rank)) = (run, differs) {
        let warning = format!(
            "step {step}: the weights of rank {rank} differ from those of rank 0, as processors that \
             round differently let them; `--resume` continues from those of rank 0"
        );
        run.warn(control, warning)?;
    }
    Ok(())
}

/// A number that tells apart the values of tensors: for the check that ranks have the same weights.
#[derive(Default)]
pub struct Digest(DefaultHasher);

impl Digest {
    /// Adds values.
    fn add(&mut self, values: &[f32]) {
        // FNV-1a over whole values: one number of each tensor goes through the slower hash.
        let digest = values
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |digest, value| {
                (digest ^ u64::from(value.to_bits())).wrapping_mul(0x0100_0000_01b3)
            });
        self.0.write_u64(digest);
    }

    /// Adds text.
    pub fn add_text(&mut self, text: &str) {
        self.0.write(text.as_bytes());
        self.0.write_u8(0xff);
    }

    /// The text of named tensors.
    pub fn of_tensors<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a [f32])>) -> String {
        let mut digest = Self::default();
        for (name, values) in tensors {
            digest.add_text(name);
            digest.add(values);
        }
        digest.text()
    }

    /// The number of all that was added, in hex.
    pub fn text(&self) -> String {
        format!("{:016x}", self.0.finish())
    }
}
