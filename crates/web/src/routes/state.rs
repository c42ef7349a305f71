//! What is served, and how the server is.

use std::sync::atomic::Ordering::Relaxed;

use axum::extract::State;
use axum::http::Uri;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::{json, typed};
use crate::app::Shared;
use crate::models::ModelInfo;
use crate::params::Params;
use crate::problem::Problem;

/// What is served.
#[derive(Serialize, ToSchema)]
pub struct ServedState {
    models: Vec<ModelInfo>,
    gallery: GalleryState,
    /// Labeled images.
    labels: usize,
    /// Whether runs are served.
    runs: bool,
    limits: LimitState,
}

/// The gallery in numbers.
#[derive(Serialize, ToSchema)]
pub struct GalleryState {
    images: usize,
    /// Whether images can be added and removed.
    writable: bool,
}

/// What a request may take.
#[derive(Serialize, ToSchema)]
pub struct LimitState {
    /// Bytes of a body.
    body_bytes: usize,
    /// Pixels of an image.
    pixels: u64,
    /// Images of a request.
    images: usize,
    /// Seconds to the answer.
    seconds: u64,
}

/// The models, the gallery and the limits.
#[utoipa::path(
    get, path = "/v1/models", tag = "state",
    responses((status = 200, body = ServedState)),
)]
pub async fn models(State(app): Shared, uri: Uri) -> Result<Response, Problem> {
    Params::read(&uri, &[])?;
    let writable = app.with_gallery(|gallery| Ok(gallery.is_writable())).await;
    json(&ServedState {
        models: app.served.infos.clone(),
        gallery: GalleryState {
            images: app.gallery_images.load(Relaxed),
            writable: writable.unwrap_or(false),
        },
        labels: app.labels.as_ref().map_or(0, |labels| labels.len()),
        runs: app.runs.is_some(),
        limits: LimitState {
            body_bytes: app.limits.body_bytes,
            pixels: app.limits.pixels,
            images: app.limits.images,
            seconds: app.limits.seconds,
        },
    })
}

/// Whether the process answers.
#[utoipa::path(get, path = "/health", tag = "state", responses((status = 200, description = "It does")))]
pub async fn health() -> Response {
    typed("application/json", "{\"status\":\"ok\"}")
}

/// Whether models and gallery are loaded.
#[utoipa::path(
    get, path = "/ready", tag = "state",
    responses((status = 200, description = "They are"), (status = 503, body = Problem)),
)]
pub async fn ready(State(app): Shared) -> Result<Response, Problem> {
    match app.gallery.get() {
        Some(_) => Ok(typed("application/json", "{\"status\":\"ready\"}")),
        None => Err(Problem::busy("the gallery is being loaded")),
    }
}

/// Counters in the text format of Prometheus.
#[utoipa::path(
    get, path = "/metrics", tag = "state",
    responses((status = 200, content_type = "text/plain", description = "Counters")),
)]
pub async fn metrics(State(app): Shared) -> Response {
    let text = app.counters.text(app.gallery_images.load(Relaxed));
    typed("text/plain; version=0.0.4; charset=utf-8", text)
}
