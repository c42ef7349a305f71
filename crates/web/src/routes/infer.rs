//! Features, search and predictions.

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, header};
use axum::response::Response;
use clasp_model::prompt::PromptWeights;
use clasp_tasks::TaskKind;
use clasp_tasks::retrieve::SearchAnswer;
use serde::Serialize;
use serde_json::{Map, Value};

use super::answer::{json_lines, typed};
use crate::app::Shared;
use crate::models::{ImageOutput, ImageWork, features};
use crate::params::Params;
use crate::problem::Problem;
use crate::upload::{checked_key, read_images};

/// Most matches of a query.
const MOST_MATCHES: usize = 1000;

/// A row of the file that `clasp embed` writes.
#[derive(Serialize)]
struct FeatureRow {
    key: String,
    feature: Vec<f32>,
}

/// Features of images, as `clasp embed`: a line `{"key", "feature"}` for each image, not
/// normalized.
#[utoipa::path(
    post, path = "/v1/embed", tag = "images",
    params(("prompt" = Option<String>, Query, description = "Prompt: identity, part, attribute, or prompt weights; identity")),
    request_body(content_type = "multipart/form-data", description = "Fields called `image`; or an image as the body"),
    responses(
        (status = 200, content_type = "application/x-ndjson", description = "A line for each image", example = json!({"key": "a", "feature": [0.1, -2.5]})),
        (status = 400, body = Problem), (status = 408, body = Problem), (status = 413, body = Problem),
        (status = 415, body = Problem), (status = 422, body = Problem), (status = 503, body = Problem),
    ),
)]
pub async fn embed(State(app): Shared, request: Request) -> Result<Response, Problem> {
    let deadline = app.deadline();
    let params = Params::read(request.uri(), &["prompt"])?;
    let prompt: PromptWeights = { params.one("prompt")? }
        .unwrap_or("identity")
        .parse()
        .map_err(|error| Problem::bad_request(format!("prompt: {error}")))?;
    app.served.check(&ImageWork::Embed(prompt))?;
    let images = read_images(&app, request, None, deadline).await?;
    let outputs = app
        .compute(ImageWork::Embed(prompt), images, deadline)
        .await?;
    let rows: Vec<FeatureRow> = { features(outputs)?.into_iter() }
        .map(|(key, feature)| FeatureRow { key, feature })
        .collect();
    json_lines(&rows)
}

/// The nearest images of the gallery, as `clasp search`: a line `{"query", "matches"}` for each
/// image; `nobody` says whether no match is the same person.
#[utoipa::path(
    post, path = "/v1/search", tag = "images",
    params(
        ("top" = Option<usize>, Query, description = "Matches of each image, 1 to 1000; 10"),
        ("threshold" = Option<f32>, Query, description = "Lowest cosine of a match, -1 to 1; -1"),
        ("filter" = Option<Vec<String>>, Query, description = "ATTRIBUTE:VALUE that a match has by the labels; several of one attribute: any of them"),
        ("key" = Option<String>, Query, description = "Search by this image of the gallery instead of a body"),
    ),
    request_body(content_type = "multipart/form-data", description = "Fields called `image`; or an image as the body; none with `key`"),
    responses(
        (status = 200, content_type = "application/x-ndjson", description = "A line for each image",
         example = json!({"query": "a", "matches": [{"item": 3, "key": "b/0017", "cosine": 0.91, "same": true}], "nobody": false})),
        (status = 400, body = Problem), (status = 404, body = Problem), (status = 408, body = Problem), (status = 413, body = Problem),
        (status = 415, body = Problem), (status = 422, body = Problem), (status = 503, body = Problem),
    ),
)]
pub async fn search(State(app): Shared, request: Request) -> Result<Response, Problem> {
    let deadline = app.deadline();
    let params = Params::read(request.uri(), &["top", "threshold", "filter", "key"])?;
    let top = params.number("top", 1..=MOST_MATCHES, 10)?;
    let threshold = params.number("threshold", -1.0..=1.0, -1.0_f32)?;
    let filter = app.filter(params.all("filter"))?;
    app.served.check(&ImageWork::Search)?;
    let (keys, queries) = match params.one("key")? {
        Some(key) => {
            let key = checked_key(key)?;
            let of = key.clone();
            let feature = app.with_gallery(move |gallery| {
                let unknown = || Problem::not_found(format!("{of}: expected a key of the gallery"));
                gallery
                    .feature(&of)
                    .map(<[f32]>::to_vec)
                    .ok_or_else(unknown)
            });
            (vec![key], feature.await?)
        }
        None => {
            let images = read_images(&app, request, None, deadline).await?;
            let outputs = app.compute(ImageWork::Search, images, deadline).await?;
            let (keys, rows): (Vec<_>, Vec<_>) = features(outputs)?.into_iter().unzip();
            (keys, rows.concat())
        }
    };
    let same = app.served.same.as_ref().map(|same| same.cosine);
    let shared = std::sync::Arc::clone(&app);
    let search = move |gallery: &crate::gallery::Gallery| {
        let keep = |key: &str| shared.passes(key, filter.as_ref());
        Ok(gallery.nearest(&queries, top, threshold, same, &keep))
    };
    let found = app.search_gallery(deadline, search).await?;
    let answers: Vec<SearchAnswer> = { keys.into_iter().zip(found) }
        .map(|(key, matches)| SearchAnswer::new(key, matches, same.is_some()))
        .collect();
    json_lines(&answers)
}

/// A line that `clasp predict` writes.
#[derive(Serialize)]
struct PredictionLine {
    image: String,
    #[serde(flatten)]
    fields: Map<String, Value>,
}

/// Predictions of a fine-tuned model, as `clasp predict`: a line `{"image", "prediction"}` for each
/// image, or `{"image", "people"}`. With `Accept: image/png`, and one image, a picture of it.
#[utoipa::path(
    post, path = "/v1/predict/{task}", tag = "images",
    params(
        ("task" = String, Path, description = "reid, attributes, parsing, pose, detection or search"),
        ("people" = Option<String>, Query, description = "`detector`: find the people of a photo first, as with --detector"),
    ),
    request_body(content_type = "multipart/form-data", description = "Fields called `image`; or an image as the body"),
    responses(
        (status = 200, content_type = "application/x-ndjson", description = "A line for each image", example = json!({"image": "a", "prediction": {"attributes": {"backpack": 0.8}}})),
        (status = 400, body = Problem), (status = 404, body = Problem), (status = 408, body = Problem), (status = 413, body = Problem),
        (status = 415, body = Problem), (status = 422, body = Problem), (status = 503, body = Problem),
    ),
)]
pub async fn predict(
    State(app): Shared,
    task: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    let deadline = app.deadline();
    let params = Params::read(request.uri(), &["people"])?;
    // A name that is not UTF-8 is of no task either.
    let task = task.ok().and_then(|Path(task)| TaskKind::named(&task));
    let task = task.ok_or_else(|| {
        let names: Vec<&str> = TaskKind::ALL.iter().map(|task| task.name()).collect();
        Problem::not_found(format!("task: expected one of {}", names.join(", ")))
    })?;
    let people = match params.one("people")? {
        None => false,
        Some("detector") => true,
        Some(_) => return Err(Problem::bad_request("people: expected `detector`")),
    };
    let accepted = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok());
    let draw = accepted == Some("image/png");
    let work = ImageWork::Predict { task, people, draw };
    app.served.check(&work)?;
    let images = read_images(&app, request, None, deadline).await?;
    if draw && images.len() > 1 {
        return Err(Problem::bad_request(format!(
            "expected one image for a picture, found {}",
            images.len()
        )));
    }
    let mut lines = Vec::new();
    for (image, output) in app.compute(work, images, deadline).await? {
        match output {
            ImageOutput::Fields(fields) => lines.push(PredictionLine { image, fields }),
            ImageOutput::Picture(png) => return Ok(typed("image/png", png)),
            ImageOutput::Feature(_) => {
                return Err(Problem::internal("the model gave no prediction"));
            }
        }
    }
    json_lines(&lines)
}
