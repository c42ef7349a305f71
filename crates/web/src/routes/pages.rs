//! The pages, which lie in the program.

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::response::Response;

use super::answer::typed;
use crate::problem::Problem;

const HTML: &str = "text/html; charset=utf-8";

/// What pages load.
const ASSETS: [(&str, &str, &str); 6] = [
    (
        "style.css",
        "text/css; charset=utf-8",
        include_str!("../pages/style.css"),
    ),
    (
        "common.js",
        "text/javascript; charset=utf-8",
        include_str!("../pages/common.js"),
    ),
    (
        "people.js",
        "text/javascript; charset=utf-8",
        include_str!("../pages/people.js"),
    ),
    (
        "labels.js",
        "text/javascript; charset=utf-8",
        include_str!("../pages/labels.js"),
    ),
    (
        "runs.js",
        "text/javascript; charset=utf-8",
        include_str!("../pages/runs.js"),
    ),
    (
        "icon.svg",
        "image/svg+xml",
        include_str!("../pages/icon.svg"),
    ),
];

/// The page to search people and to look at predictions.
pub async fn people() -> Response {
    typed(HTML, include_str!("../pages/people.html"))
}

/// The page to correct labels.
pub async fn labels() -> Response {
    typed(HTML, include_str!("../pages/labels.html"))
}

/// The page of runs.
pub async fn runs() -> Response {
    typed(HTML, include_str!("../pages/runs.html"))
}

/// What pages load, by name.
pub async fn asset(name: Result<Path<String>, PathRejection>) -> Result<Response, Problem> {
    let name = name.ok();
    let asset = name.and_then(|Path(name)| ASSETS.iter().find(|(of, ..)| *of == name));
    let (_, kind, text) = asset.ok_or_else(|| Problem::not_found("expected a file of a page"))?;
    Ok(typed(kind, *text))
}
