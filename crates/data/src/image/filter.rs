//! The resampling filter, a type so that no file or recipe can ask for one that does not exist.

use serde::{Deserialize, Serialize};

/// The resampling filter: how a resized pixel is computed from its neighbors. Files and recipes
/// spell it in lower case, `bicubic`, as timm and torchvision do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// The nearest pixel, without antialiasing: for label maps.
    Nearest,
    /// Triangle of half-width 1 input pixel.
    Bilinear,
    /// Keys' cubic of half-width 2 with a = -1/2 (Keys 1981), Pillow's `BICUBIC`.
    Bicubic,
}

impl Filter {
    /// All filters.
    pub const ALL: [Filter; 3] = [Filter::Nearest, Filter::Bilinear, Filter::Bicubic];

    /// The name in files and recipes.
    pub fn name(self) -> &'static str {
        match self {
            Filter::Nearest => "nearest",
            Filter::Bilinear => "bilinear",
            Filter::Bicubic => "bicubic",
        }
    }

    /// Half-width in input pixels at scale 1.
    pub(super) fn support(self) -> f64 {
        match self {
            Filter::Nearest => 0.5,
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
        }
    }

    pub(super) fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Filter::Nearest => f64::from(x <= 0.5),
            Filter::Bilinear => (1.0 - x).max(0.0),
            Filter::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Filter::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            Filter::Bicubic => 0.0,
        }
    }
}

impl std::fmt::Display for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The filter of a name.
impl std::str::FromStr for Filter {
    type Err = UnknownFilter;

    fn from_str(name: &str) -> Result<Self, UnknownFilter> {
        let known = Filter::ALL.into_iter().find(|filter| filter.name() == name);
        known.ok_or_else(|| UnknownFilter(name.to_owned()))
    }
}

/// A name that no filter has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a resampling filter (`nearest`, `bilinear` or `bicubic`), found `{0}`")]
pub struct UnknownFilter(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_written_as_its_name() {
        for filter in Filter::ALL {
            let quoted = format!("\"{filter}\"");
            assert_eq!(serde_json::to_string(&filter).unwrap(), quoted);
            assert_eq!(serde_json::from_str::<Filter>(&quoted).unwrap(), filter);
            assert_eq!(filter.name().parse(), Ok(filter));
        }
        let error = "cubic".parse::<Filter>().unwrap_err().to_string();
        assert!(error.contains("found `cubic`"), "{error}");
    }
}
