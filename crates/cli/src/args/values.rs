//! Values of arguments: how they are read, and their bounds.

use std::str::FromStr;

use clap::Args;
use clap::builder::RangedU64ValueParser;
use clasp_data::labels::PartCorrection;
use clasp_model::Precision;

/// Precision of commands that train nothing.
#[derive(Args, Debug, Clone, Copy)]
pub struct MatrixPrecision {
    /// Number format of matrix products: f32, or bf16, which is faster on processors with Intel's AMX
    /// or AMD's AVX512-BF16 and on most GPUs
    #[arg(long = "precision", value_name = "F32|BF16", default_value_t = Precision::F32)]
    pub format: Precision,
}

/// A number from `from` to `to`.
pub fn count(from: usize, to: usize) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(from as u64..=to as u64)
}

/// A number from 0 to 1.
pub fn fraction(text: &str) -> Result<f32, String> {
    number(text, [0.0, 1.0])
}

/// A cosine similarity, from -1 to 1.
pub fn cosine(text: &str) -> Result<f32, String> {
    number(text, [-1.0, 1.0])
}

fn number(text: &str, [from, to]: [f32; 2]) -> Result<f32, String> {
    let value = text.parse().ok();
    let value = value.filter(|value| (from..=to).contains(value));
    value.ok_or_else(|| format!("expected a number from {from} to {to}, found `{text}`"))
}

/// `HEIGHTxWIDTH`.
pub fn size(text: &str) -> Result<[usize; 2], String> {
    let expected =
        || format!("expected HEIGHTxWIDTH, each from 1 to 4096, such as 256x128, found `{text}`");
    let (height, width) = text.split_once('x').ok_or_else(expected)?;
    let side = |text: &str| match text.parse::<usize>() {
        Ok(side) if (1..=4096).contains(&side) => Ok(side),
        _ => Err(expected()),
    };
    Ok([side(height)?, side(width)?])
}

/// A value that is written by its name.
pub fn parse<T: FromStr<Err = String>>(text: &str) -> Result<T, String> {
    text.parse()
}

/// `NAME=VALUE`; `NAME=` has no value.
pub fn attribute_value(text: &str) -> Result<(String, Option<String>), String> {
    let parts = text.split_once('=');
    let (name, value) = parts.ok_or_else(|| format!("expected NAME=VALUE, found `{text}`"))?;
    Ok((name.into(), (!value.is_empty()).then(|| value.into())))
}

/// `ROW,COLUMN=CLASS`; `ROW,COLUMN=` has no class.
pub fn part_class(text: &str) -> Result<PartCorrection, String> {
    let parts = text.split_once('=').and_then(|(position, class)| {
        let (row, column) = position.split_once(',')?;
        Some(PartCorrection {
            row: row.trim().parse().ok()?,
            column: column.trim().parse().ok()?,
            class: (!class.is_empty()).then(|| class.into()),
        })
    });
    parts.ok_or_else(|| format!("expected ROW,COLUMN=CLASS such as 3,2=head, found `{text}`"))
}

/// `R,G,B`, three finite numbers.
pub fn colors(text: &str) -> Result<[f32; 3], String> {
    let expected = || format!("expected three numbers such as 0.485,0.456,0.406, found `{text}`");
    let values: Vec<f32> = text
        .split(',')
        .map(|part| part.trim().parse().ok().filter(|v: &f32| v.is_finite()))
        .collect::<Option<_>>()
        .ok_or_else(expected)?;
    values.try_into().map_err(|_| expected())
}

/// `I/N` with `I < N`: part I of N, counted from 0.
pub fn shard(text: &str) -> Result<(usize, usize), String> {
    let parsed = text
        .split_once('/')
        .and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
    match parsed {
        Some((index, count)) if index < count => Ok((index, count)),
        _ => Err(format!("expected I/N with I from 0 to N-1, found `{text}`")),
    }
}
