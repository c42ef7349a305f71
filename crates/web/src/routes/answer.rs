//! Bodies of answers under their content types.

use axum::http::header;
use axum::response::{IntoResponse, Response};
use clasp_data::image::format_of;
use serde::Serialize;

use crate::problem::Problem;

/// A JSON answer.
pub fn json(value: &impl Serialize) -> Result<Response, Problem> {
    let text = serde_json::to_vec(value).map_err(|error| Problem::internal(error.to_string()))?;
    Ok(typed("application/json", text))
}

/// JSON lines, one for each image.
pub fn json_lines(lines: &[impl Serialize]) -> Result<Response, Problem> {
    let mut text = Vec::new();
    for line in lines {
        let written = serde_json::to_writer(&mut text, line);
        written.map_err(|error| Problem::internal(error.to_string()))?;
        text.push(b'\n');
    }
    Ok(typed("application/x-ndjson", text))
}

/// An encoded image, under the type that its bytes have.
pub fn encoded_image(bytes: Vec<u8>) -> Result<Response, Problem> {
    let kind = match format_of(&bytes) {
        Some("JPEG") => "image/jpeg",
        Some("PNG") => "image/png",
        Some("WebP") => "image/webp",
        Some("BMP") => "image/bmp",
        _ => return Err(Problem::not_found("the file is no longer an image")),
    };
    Ok(typed(kind, bytes))
}

pub fn typed(kind: &'static str, bytes: impl Into<axum::body::Body>) -> Response {
    ([(header::CONTENT_TYPE, kind)], bytes.into()).into_response()
}
