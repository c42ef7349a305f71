//! What the labels say, and corrections of them.

use axum::extract::{Request, State};
use axum::http::Uri;
use axum::response::Response;
use clasp_data::labels::{Correction, PartCorrection};
use serde::Deserialize;
use utoipa::ToSchema;

use super::answer::json;
use crate::app::{Shared, blocking};
use crate::labels::{ImageLabels, LabelPage, LabelQuery, ServedAttribute};
use crate::params::Params;
use crate::problem::Problem;
use crate::upload::read_json;

/// Most images of an answer.
const MOST_LISTED: usize = 500;
/// Most bytes of a correction.
const MOST_BYTES: usize = 1 << 20;

/// The labeled images, the least confident first.
#[utoipa::path(
    get, path = "/v1/labels", tag = "labels",
    params(
        ("sort" = Option<String>, Query, description = "`parts`: by the mean confidence of the part map; an attribute: by the probability of its likeliest value; `stored`: the order of the files; parts"),
        ("filter" = Option<Vec<String>>, Query, description = "ATTRIBUTE:VALUE that is sure"),
        ("corrected" = Option<String>, Query, description = "`yes` or `no`: only images with or without corrections"),
        ("from" = Option<usize>, Query, description = "Images to pass over"),
        ("count" = Option<usize>, Query, description = "Most images, 1 to 500; 60"),
    ),
    responses((status = 200, body = LabelPage), (status = 400, body = Problem), (status = 404, body = Problem)),
)]
pub async fn list(State(app): Shared, uri: Uri) -> Result<Response, Problem> {
    let params = Params::read(&uri, &["sort", "filter", "corrected", "from", "count"])?;
    let labels = app.labels()?;
    let query = LabelQuery {
        order: labels.order(params.one("sort")?.unwrap_or("parts"))?,
        filter: labels.filter(params.all("filter"))?,
        corrected: match params.choice("corrected", &["all", "yes", "no"])? {
            "all" => None,
            one => Some(one == "yes"),
        },
        from: params.number("from", 0..=usize::MAX, 0)?,
        count: params.number("count", 1..=MOST_LISTED, 60)?,
    };
    let app = std::sync::Arc::clone(&app);
    json(&blocking(move || Ok(app.labels()?.list(&query))).await?)
}

/// What people say of an image; in the names of the vocabulary, `null` where nobody can tell.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SentCorrection {
    /// The image's key.
    key: String,
    /// Value by attribute.
    #[serde(default)]
    attributes: std::collections::BTreeMap<String, Option<String>>,
    /// Classes of single positions of the part map: `{"row", "column", "class"}`.
    #[serde(default)]
    #[schema(value_type = Vec<Object>)]
    parts: Vec<PartCorrection>,
    /// Whether earlier corrections of the image are taken back first.
    #[serde(default)]
    clear: bool,
}

/// Corrects the labels of an image; that is on the disk when the labels as they are now are
/// answered.
#[utoipa::path(
    post, path = "/v1/labels/image", tag = "labels",
    request_body = SentCorrection,
    responses(
        (status = 200, body = ImageLabels), (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 415, body = Problem), (status = 507, body = Problem),
    ),
)]
pub async fn correct(State(app): Shared, request: Request) -> Result<Response, Problem> {
    let deadline = app.deadline();
    Params::read(request.uri(), &[])?;
    app.labels()?;
    let sent: SentCorrection = read_json(&app, request, MOST_BYTES, deadline).await?;
    let app = std::sync::Arc::clone(&app);
    let corrected = blocking(move || {
        let correction = Correction {
            key: sent.key.clone(),
            attributes: sent.attributes,
            parts: sent.parts,
            ..Correction::default()
        };
        let labels = app.labels()?;
        labels.correct(correction, sent.clear, &*app.note)?;
        let unknown = || Problem::not_found(format!("{}: expected a labeled image", sent.key));
        labels.of_image(&sent.key).ok_or_else(unknown)
    });
    json(&corrected.await?)
}

/// The attributes of the labels, with the number of images of which each value is sure.
#[utoipa::path(
    get, path = "/v1/labels/attributes", tag = "labels",
    responses((status = 200, body = Vec<ServedAttribute>), (status = 404, body = Problem)),
)]
pub async fn attributes(State(app): Shared, uri: Uri) -> Result<Response, Problem> {
    Params::read(&uri, &[])?;
    json(&blocking(move || Ok(app.labels()?.counts())).await?)
}

/// The labels of an image.
#[utoipa::path(
    get, path = "/v1/labels/image", tag = "labels",
    params(("key" = String, Query, description = "Key of the image")),
    responses((status = 200, body = ImageLabels), (status = 404, body = Problem)),
)]
pub async fn of_image(State(app): Shared, uri: Uri) -> Result<Response, Problem> {
    let params = Params::read(&uri, &["key"])?;
    let key = params.needed("key")?.to_owned();
    let labels = blocking(move || {
        let unknown = || Problem::not_found(format!("{key}: expected a labeled image"));
        app.labels()?.of_image(&key).ok_or_else(unknown)
    });
    json(&labels.await?)
}
