//! The routes, and what every request passes.

mod answer;
mod gallery;
mod infer;
mod labels;
mod pages;
mod runs;
mod state;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;

use crate::app::App;
use crate::guard::SECURITY_HEADERS;
use crate::problem::Problem;

/// The OpenAPI description of the routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "clasp serve",
        description = "Features, search and predictions of images of people. Bodies are an image, or a form \
                       (multipart/form-data) with several fields `image`. Answers for images are JSON lines, one line for \
                       each image, in the formats of docs/formats.md. Errors are problem details (RFC 9457)."
    ),
    paths(
        infer::embed,
        infer::search,
        infer::predict,
        gallery::list,
        gallery::add,
        gallery::remove,
        gallery::image,
        labels::list,
        labels::correct,
        labels::attributes,
        labels::of_image,
        runs::list,
        runs::metrics,
        runs::experts,
        runs::pictures,
        runs::picture,
        state::models,
        state::health,
        state::ready,
        state::metrics,
    ),
    components(schemas(Problem))
)]
struct ApiDescription;

/// The OpenAPI description as JSON.
pub fn description() -> String {
    let mut description = ApiDescription::openapi();
    description.info.version = env!("CARGO_PKG_VERSION").to_owned();
    description.to_json().unwrap_or_default()
}

/// All routes.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(pages::people))
        .route("/labels", get(pages::labels))
        .route("/runs", get(pages::runs))
        .route("/assets/{name}", get(pages::asset))
        .route("/health", get(state::health))
        .route("/ready", get(state::ready))
        .route("/metrics", get(state::metrics))
        .route("/openapi.json", get(openapi))
        .route("/v1/models", get(state::models))
        .route("/v1/embed", post(infer::embed))
        .route("/v1/search", post(infer::search))
        .route("/v1/predict/{task}", post(infer::predict))
        .route(
            "/v1/gallery",
            get(gallery::list)
                .post(gallery::add)
                .delete(gallery::remove),
        )
        .route("/v1/gallery/image", get(gallery::image))
        .route("/v1/labels", get(labels::list))
        .route("/v1/labels/attributes", get(labels::attributes))
        .route(
            "/v1/labels/image",
            get(labels::of_image).post(labels::correct),
        )
        .route("/v1/runs", get(runs::list))
        .route("/v1/runs/metrics", get(runs::metrics))
        .route("/v1/runs/experts", get(runs::experts))
        .route("/v1/runs/pictures", get(runs::pictures))
        .route("/v1/runs/picture", get(runs::picture))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::disable())
        .layer(CatchPanicLayer::custom(|_| {
            Problem::internal("the request failed; the log of the server says why").into_response()
        }))
        .layer(from_fn_with_state(Arc::clone(&app), every_request))
        .with_state(app)
}

async fn openapi() -> Response {
    answer::typed("application/json", description())
}

async fn no_route() -> Problem {
    Problem::not_found("expected a route of /openapi.json")
}

async fn no_method() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "expected a method of /openapi.json for this route",
    )
}

/// Routes without secrets, which need no token: pages, their description, and whether the server is
/// up.
fn is_open(path: &str) -> bool {
    matches!(
        path,
        "/" | "/labels" | "/runs" | "/health" | "/ready" | "/openapi.json"
    ) || path.starts_with("/assets/")
}

/// Checks who asks, counts, and adds the headers of every answer.
async fn every_request(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let route = request.extensions().get::<MatchedPath>();
    // Unknown paths are one route: they would fill the memory.
    let route = route.map_or("other".to_owned(), |path| path.as_str().to_owned());
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let open = is_open(uri.path());
    let mut response = match app.guard.check(&method, &uri, request.headers(), open) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    let headers = response.headers_mut();
    for (name, value) in SECURITY_HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    if method != Method::GET && response.status().is_client_error() {
        // The rest of a refused body is not read.
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    app.counters
        .add_request(&route, response.status().as_u16(), began.elapsed());
    response
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_description_names_every_route() {
        let text = super::description();
        let description: serde_json::Value = serde_json::from_str(&text).unwrap();
        let routes = include_str!("mod.rs").split("#[cfg(test)]").next().unwrap();
        let paths: Vec<&str> = { routes.split('"') }
            .filter(|text| text.starts_with("/v1/"))
            .collect();
        assert_eq!(paths.len(), 14, "{paths:?}");
        for path in paths {
            assert!(description["paths"][path].is_object(), "{path}");
        }
        let embed = &description["paths"]["/v1/embed"]["post"]["responses"];
        assert!(
            embed["503"].is_object() && embed["413"].is_object(),
            "{embed}"
        );
    }
}
