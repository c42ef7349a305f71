//! The images of a request: the body itself, or the parts of a form.

use std::collections::HashSet;
use std::sync::Arc;

use axum::extract::{FromRequest, Multipart, Request};
use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use crate::app::{App, UploadedImage};
use crate::problem::Problem;

/// Longest key in bytes.
const LONGEST_KEY: usize = 255;
/// Bytes that a permit of [`App::held`] stands for.
pub const PERMIT: usize = 1 << 12;

/// Bytes of a body, with the permits for the whole body: these are returned when the last image of
/// the body is dropped, wherever it is then.
struct HeldBytes {
    bytes: Bytes,
    _held: Option<Arc<OwnedSemaphorePermit>>,
}

impl AsRef<[u8]> for HeldBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads the images of a request. `key`: that of the image where the body is one.
///
/// # Errors
/// 400, 408, 413, 415 or 503: a body that is none, too slow, too large, of another kind, or more
/// than is held at a time.
pub async fn read_images(
    app: &App,
    request: Request,
    key: Option<&str>,
    deadline: Instant,
) -> Result<Vec<UploadedImage>, Problem> {
    let kind = content_kind(request.headers())?;
    let (parts, body) = request.into_parts();
    let limit = app.limits.body_bytes;
    let (bytes, held) = read_body(app, &parts.headers, body, limit, deadline).await?;
    let images = match kind {
        ContentKind::Image => vec![UploadedImage {
            key: checked_key(key.unwrap_or("1"))?,
            image: bytes,
        }],
        ContentKind::Form if key.is_some() => {
            return Err(Problem::bad_request(
                "key: expected none with a form\nhint: the names of its files are the keys",
            ));
        }
        ContentKind::Form => {
            let request = Request::from_parts(parts, bytes.into());
            form_images(request, app.limits.images).await?
        }
    };
    if images.iter().any(|one| one.image.is_empty()) || images.is_empty() {
        return Err(Problem::bad_request("expected an image, found none"));
    }
    let mut keys = HashSet::new();
    if let Some(twice) = images.iter().find(|one| !keys.insert(one.key.as_str())) {
        return Err(Problem::bad_request(format!(
            "expected files of different names, found `{}` twice",
            twice.key
        )));
    }
    Ok(holding(images, held))
}

/// The images of a body, which hold its permits.
fn holding(
    images: impl IntoIterator<Item = UploadedImage>,
    held: Option<OwnedSemaphorePermit>,
) -> Vec<UploadedImage> {
    let held = held.map(Arc::new);
    let holding = |one: UploadedImage| UploadedImage {
        image: Bytes::from_owner(HeldBytes {
            bytes: one.image,
            _held: held.clone(),
        }),
        ..one
    };
    images.into_iter().map(holding).collect()
}

/// Reads a JSON body of at most `limit` bytes.
///
/// # Errors
/// As [`read_images`]; JSON of another form.
pub async fn read_json<T: DeserializeOwned>(
    app: &App,
    request: Request,
    limit: usize,
    deadline: Instant,
) -> Result<T, Problem> {
    let (parts, body) = request.into_parts();
    let kind = parts.headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if kind.split(';').next().unwrap_or_default().trim() != "application/json" {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!("Content-Type: expected application/json, found `{kind}`"),
        ));
    }
    let (bytes, _held) = read_body(app, &parts.headers, body, limit, deadline).await?;
    serde_json::from_slice(&bytes).map_err(|error| Problem::bad_request(format!("JSON: {error}")))
}

#[derive(Clone, Copy)]
enum ContentKind {
    Image,
    Form,
}

fn content_kind(headers: &HeaderMap) -> Result<ContentKind, Problem> {
    let text = match headers.get(header::CONTENT_TYPE) {
        None => return Ok(ContentKind::Image),
        Some(value) => value.to_str().unwrap_or_default(),
    };
    let kind = text
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    match kind.as_str() {
        "multipart/form-data" => Ok(ContentKind::Form),
        "application/octet-stream" => Ok(ContentKind::Image),
        kind if kind.starts_with("image/") => Ok(ContentKind::Image),
        _ => Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!(
                "Content-Type: expected an image, application/octet-stream or multipart/form-data, found `{text}`"
            ),
        )),
    }
}

/// The whole body, with permits for its bytes.
async fn read_body(
    app: &App,
    headers: &HeaderMap,
    mut body: axum::body::Body,
    limit: usize,
    deadline: Instant,
) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Problem> {
    let too_large = || {
        Problem::too_large(format!(
            "expected a body of at most {limit} bytes\nhint: send fewer images at a time, or --max-body"
        ))
    };
    let claimed = headers.get(header::CONTENT_LENGTH);
    let claimed = claimed.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if claimed.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let (mut bytes, mut held) = (BytesMut::new(), None::<OwnedSemaphorePermit>);
    loop {
        // What comes counts, not what was claimed: a body that never comes holds nothing.
        let frame = timeout_at(deadline, body.frame()).await.map_err(|_| {
            Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                format!("expected the body within {} seconds", app.limits.seconds),
            )
        })?;
        let Some(frame) = frame else {
            return Ok((bytes.freeze(), held));
        };
        let frame = frame.map_err(|error| Problem::bad_request(format!("body: {error}")))?;
        let Some(data) = frame.data_ref() else {
            continue;
        };
        if bytes.len() + data.len() > limit {
            return Err(too_large());
        }
        let needed = (bytes.len() + data.len()).div_ceil(PERMIT) - bytes.len().div_ceil(PERMIT);
        if needed > 0 {
            let needed = u32::try_from(needed).map_err(|_| too_large())?;
            let more = app.held.clone().try_acquire_many_owned(needed);
            let more = more.map_err(|_| Problem::busy("too many bodies are being received"))?;
            match &mut held {
                Some(held) => held.merge(more),
                None => held = Some(more),
            }
        }
        bytes.extend_from_slice(data);
    }
}

async fn form_images(request: Request, limit: usize) -> Result<Vec<UploadedImage>, Problem> {
    let wrong = |text: String| Problem::bad_request(format!("form: {text}"));
    let form = Multipart::from_request(request, &()).await;
    let mut form = form.map_err(|error| wrong(error.body_text()))?;
    let mut images = Vec::new();
    loop {
        let field = form.next_field().await;
        let Some(field) = field.map_err(|error| wrong(error.body_text()))? else {
            return Ok(images);
        };
        if images.len() == limit {
            return Err(Problem::too_large(format!(
                "expected at most {limit} images in a request\nhint: send several requests, or --max-images"
            )));
        }
        if field.name() != Some("image") {
            return Err(wrong(format!(
                "expected fields called `image`, found `{}`",
                field.name().unwrap_or_default()
            )));
        }
        let key = match field.file_name() {
            Some(name) if !name.is_empty() => checked_key(without_extension(name))?,
            _ => (images.len() + 1).to_string(),
        };
        let image = field.bytes().await;
        images.push(UploadedImage {
            key,
            image: image.map_err(|error| wrong(error.body_text()))?,
        });
    }
}

/// A file's name without the extension of an image, as the key of a single file.
fn without_extension(name: &str) -> &str {
    match name.rsplit_once('.') {
        Some((stem, ending)) if !stem.is_empty() && ending.len() <= 4 => stem,
        _ => name,
    }
}

/// Checks a key, which names an image and never a file of this machine.
///
/// # Errors
/// 400: it is empty, too long, or has control characters.
pub fn checked_key(key: &str) -> Result<String, Problem> {
    if key.is_empty() || key.len() > LONGEST_KEY || key.chars().any(char::is_control) {
        return Err(Problem::bad_request(format!(
            "key: expected 1 to {LONGEST_KEY} bytes without control characters, found {}",
            key.len()
        )));
    }
    Ok(key.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::Semaphore;

    #[test]
    fn permits_return_with_the_last_image_of_a_body() {
        let all = Arc::new(Semaphore::new(3));
        let held = Arc::clone(&all).try_acquire_many_owned(2).ok();
        let images = holding(
            ["a", "b"].map(|key| UploadedImage {
                key: key.to_owned(),
                image: Bytes::from_static(b"image"),
            }),
            held,
        );
        let waiting = images[1].image.clone();
        drop(images);
        assert_eq!((all.available_permits(), &waiting[..]), (1, &b"image"[..]));
        drop(waiting);
        assert_eq!(all.available_permits(), 3);
    }

    #[test]
    fn keys_are_names_without_extension() {
        for (name, key) in [
            ("a.jpg", "a"),
            ("a.b.jpeg", "a.b"),
            ("a", "a"),
            (".jpg", ".jpg"),
            ("a.b c d e", "a.b c d e"),
        ] {
            assert_eq!(without_extension(name), key);
        }
        assert!(checked_key("a\nb").is_err() && checked_key("").is_err());
        assert!(checked_key(&"x".repeat(256)).is_err());
        assert_eq!(checked_key("a/../b").unwrap(), "a/../b");
    }
}
