//! The gallery: list, add, remove, look at an image.

use axum::extract::{Request, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};

use serde::Serialize;
use utoipa::ToSchema;

use super::answer::{encoded_image, json};
use crate::app::{App, Shared};
use crate::gallery::GalleryError;
use crate::gallery::log::NewImage;
use crate::models::{ImageWork, features};
use crate::params::Params;
use crate::problem::{Problem, status_of};
use crate::upload::{checked_key, read_images};

/// Most keys of an answer.
const MOST_KEYS: usize = 1000;

/// The problem of a gallery that is not changed or read. The system's own message names files of
/// this machine: it is noted, and not sent.
fn problem_of(error: GalleryError, app: &App) -> Problem {
    let status = match &error {
        GalleryError::ReadOnly => StatusCode::FORBIDDEN,
        GalleryError::Taken(_) => StatusCode::CONFLICT,
        GalleryError::Unknown(_) | GalleryError::NoImage(_) => StatusCode::NOT_FOUND,
        GalleryError::Full { .. } => StatusCode::INSUFFICIENT_STORAGE,
        GalleryError::Io(error) => {
            (app.note)(format!("--store: {error}"));
            return Problem::new(
                status_of(error),
                "the store cannot be written or read; the log of the server says why",
            );
        }
    };
    Problem::new(status, error.to_string())
}

/// A part of the keys of the gallery.
#[derive(Serialize, ToSchema)]
pub struct GalleryPage {
    /// Images in the gallery.
    images: usize,
    /// Keys in their order.
    keys: Vec<String>,
    /// The value of `after` for the next part; none at the end.
    next: Option<String>,
}

/// The keys of the gallery, in their order.
#[utoipa::path(
    get, path = "/v1/gallery", tag = "gallery",
    params(
        ("after" = Option<String>, Query, description = "Begin after this key"),
        ("count" = Option<usize>, Query, description = "Most keys, 1 to 1000; 100"),
        ("filter" = Option<Vec<String>>, Query, description = "ATTRIBUTE:VALUE by the labels"),
    ),
    responses((status = 200, body = GalleryPage), (status = 400, body = Problem), (status = 503, body = Problem)),
)]
pub async fn list(State(app): Shared, uri: Uri) -> Result<Response, Problem> {
    let params = Params::read(&uri, &["after", "count", "filter"])?;
    let count = params.number("count", 1..=MOST_KEYS, 100)?;
    let after = params.one("after")?.map(str::to_owned);
    let filter = app.filter(params.all("filter"))?;
    let shared = std::sync::Arc::clone(&app);
    let look = move |gallery: &crate::gallery::Gallery| {
        let keep = |key: &str| shared.passes(key, filter.as_ref());
        // One more than asked for tells whether there are more.
        let mut keys = gallery.keys(after.as_deref(), count + 1, &keep);
        let more = keys.len() > count;
        keys.truncate(count);
        let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
        Ok(GalleryPage {
            images: gallery.len(),
            next: keys.last().filter(|_| more).cloned(),
            keys,
        })
    };
    json(&app.with_gallery(look).await?)
}

/// The keys that were added.
#[derive(Serialize, ToSchema)]
pub struct AddedImages {
    added: Vec<String>,
}

/// Adds images, all or none; they are on the disk when this is answered.
#[utoipa::path(
    post, path = "/v1/gallery", tag = "gallery",
    params(("key" = Option<String>, Query, description = "Key of an image that is the body; with a form the names of its files are the keys")),
    request_body(content_type = "multipart/form-data", description = "Fields called `image` with names of files; or an image as the body"),
    responses(
        (status = 201, body = AddedImages), (status = 400, body = Problem), (status = 403, body = Problem),
        (status = 409, body = Problem), (status = 413, body = Problem), (status = 503, body = Problem), (status = 507, body = Problem),
    ),
)]
pub async fn add(State(app): Shared, request: Request) -> Result<Response, Problem> {
    let deadline = app.deadline();
    let params = Params::read(request.uri(), &["key"])?;
    let key = params.one("key")?.map(str::to_owned);
    app.served.check(&ImageWork::Search)?;
    // Before anything is computed.
    let writable = |gallery: &crate::gallery::Gallery| Ok(gallery.is_writable());
    if !app.with_gallery(writable).await? {
        return Err(problem_of(GalleryError::ReadOnly, &app));
    }
    let images = read_images(&app, request, key.as_deref(), deadline).await?;
    let outputs = app
        .compute(ImageWork::Search, images.clone(), deadline)
        .await?;
    let new: Vec<NewImage> = { features(outputs)?.into_iter().zip(images) }
        .map(|((key, feature), one)| NewImage {
            key,
            feature,
            image: one.image,
        })
        .collect();
    let added = new.iter().map(|one| one.key.clone()).collect();
    let shared = std::sync::Arc::clone(&app);
    app.change_gallery(move |gallery| {
        gallery
            .add(&new)
            .map_err(|error| problem_of(error, &shared))
    })
    .await?;
    let answer = json(&AddedImages { added })?;
    Ok((StatusCode::CREATED, answer).into_response())
}

/// Removes an image from the gallery; that is on the disk when this is answered. A file of
/// `--gallery` stays where it is.
#[utoipa::path(
    delete, path = "/v1/gallery", tag = "gallery",
    params(("key" = String, Query, description = "Key of the image")),
    responses((status = 204, description = "Removed"), (status = 403, body = Problem), (status = 404, body = Problem), (status = 503, body = Problem)),
)]
pub async fn remove(State(app): Shared, uri: Uri) -> Result<StatusCode, Problem> {
    let params = Params::read(&uri, &["key"])?;
    let key = checked_key(params.needed("key")?)?;
    let shared = std::sync::Arc::clone(&app);
    app.change_gallery(move |gallery| {
        gallery
            .remove(&key)
            .map_err(|error| problem_of(error, &shared))
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// An image of the gallery, as it was given.
#[utoipa::path(
    get, path = "/v1/gallery/image", tag = "gallery",
    params(("key" = String, Query, description = "Key of the image")),
    responses((status = 200, description = "The image"), (status = 404, body = Problem), (status = 503, body = Problem)),
)]
pub async fn image(State(app): Shared, uri: Uri) -> Result<Response, Problem> {
    let params = Params::read(&uri, &["key"])?;
    let key = checked_key(params.needed("key")?)?;
    let bytes = app
        .with_gallery({
            let shared = std::sync::Arc::clone(&app);
            move |gallery| {
                gallery
                    .image(&key)
                    .map_err(|error| problem_of(error, &shared))
            }
        })
        .await?;
    encoded_image(bytes)
}
