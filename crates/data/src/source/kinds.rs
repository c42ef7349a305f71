//! Which files are images, by their names and first bytes.

use std::io::{self, Read};
use std::path::Path;

use fs_err as fs;

use crate::image::format_of;

/// Extensions of images, in lower case.
pub(super) const EXTENSIONS: [&str; 8] =
    ["jpg", "jpeg", "jpe", "jfif", "jif", "png", "webp", "bmp"];

/// Extensions of images that are not decoded, and of archives: counted where they are skipped.
pub(super) const NOT_READ: [&str; 34] = [
    "7z", "arw", "avif", "bz2", "cr2", "dng", "exr", "gif", "gz", "hdr", "heic", "heif", "ico",
    "j2k", "jp2", "jxl", "nef", "parquet", "pbm", "pgm", "ppm", "psd", "rar", "raw", "svg", "tar",
    "tga", "tgz", "tif", "tiff", "xz", "zip", "zst", "zstd",
];

/// Words for a mask between a photo's name and the extension, as in `x.seg.png`.
pub(super) const FIELDS: [&str; 18] = [
    "alpha",
    "annotation",
    "depth",
    "densepose",
    "gt",
    "instance",
    "label",
    "labels",
    "mask",
    "matte",
    "normal",
    "normals",
    "parsing",
    "parts",
    "pose",
    "seg",
    "segmentation",
    "semantic",
];

/// Extension in lower case, empty where there is none.
pub(super) fn extension(path: &Path) -> String {
    let extension = path.extension().unwrap_or_default();
    extension.to_string_lossy().to_ascii_lowercase()
}

/// Whether an image's path is `BASE.FIELD.EXTENSION` beside an image of the name `BASE`, so that it
/// is a field of that sample rather than another photo; with `any`, whatever word the field is but
/// a number, else one of [`FIELDS`].
pub(super) fn is_sidecar_field(path: &str, is_image: impl Fn(&str) -> bool, any: bool) -> bool {
    let Some((base, field)) = { path.rsplit_once('.') }.and_then(|(stem, _)| stem.rsplit_once('.'))
    else {
        return false;
    };
    let field = field.to_ascii_lowercase();
    let is_word = !field.contains('/') && !field.bytes().all(|byte| byte.is_ascii_digit());
    is_word && (any || FIELDS.contains(&field.as_str())) && is_image(base)
}

/// Whether there is a file of that name with the extension of an image.
pub(super) fn is_image_file(path: &Path) -> bool {
    EXTENSIONS.contains(&extension(path).as_str()) && path.is_file()
}

pub(crate) fn is_hidden(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().starts_with('.')
}

pub(super) fn starts_as_image(path: &Path) -> io::Result<bool> {
    let mut start = Vec::new();
    fs::File::open(path)?.take(64).read_to_end(&mut start)?;
    Ok(format_of(&start).is_some())
}
