//! Errors of requests, as problem details (RFC 9457).

use std::io::ErrorKind;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use clasp_data::image::ImageError;
use serde::Serialize;
use utoipa::ToSchema;

/// Why a request is not answered: RFC 9457, with the hint of the command line as a member of its
/// own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Problem {
    /// The kind of problem: `about:blank`, the HTTP status says all.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The phrase of the HTTP status.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// What was expected and what was found.
    detail: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    /// Seconds after which the request may be tried again.
    #[serde(skip)]
    retry_after: Option<u64>,
}

impl Problem {
    /// A problem in the words of the command line: lines that begin with `hint: ` become the hint.
    pub fn new(status: StatusCode, text: impl AsRef<str>) -> Self {
        let is_hint = |line: &&str| line.trim_start().starts_with("hint: ");
        let (hints, lines): (Vec<&str>, Vec<&str>) = text.as_ref().lines().partition(is_hint);
        let hints: Vec<&str> = { hints.into_iter() }
            .filter_map(|line| line.trim_start().strip_prefix("hint: "))
            .collect();
        Self {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: lines.join("\n"),
            hint: (!hints.is_empty()).then(|| hints.join("; ")),
            retry_after: None,
        }
    }

    /// 400: a parameter or a body that makes no sense.
    pub fn bad_request(text: impl AsRef<str>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    /// 404: nothing of that name is served.
    pub fn not_found(text: impl AsRef<str>) -> Self {
        Self::new(StatusCode::NOT_FOUND, text)
    }

    /// 413: more than a limit.
    pub fn too_large(text: impl AsRef<str>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, text)
    }

    /// 500: a fault of the server; the text is for its log, not for the client.
    pub fn internal(text: impl AsRef<str>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, text)
    }

    /// 503: busy for now.
    pub fn busy(text: impl AsRef<str>) -> Self {
        Self {
            retry_after: Some(1),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, text)
        }
    }

    /// An image of a request that cannot be used.
    pub fn of_image(key: &str, error: &ImageError) -> Self {
        let status = match error {
            ImageError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            ImageError::NotAnImage { .. } => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            _ => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self::new(status, format!("image {key}: {error}"))
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

/// The status where a file system refuses.
pub fn status_of(error: &std::io::Error) -> StatusCode {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StatusCode::INSUFFICIENT_STORAGE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (self.status(), body).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED.as_u16() {
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"clasp\""),
            );
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_is_a_member_of_its_own() {
        let problem = Problem::bad_request("top: expected 1 to 3, found 9\n  hint: ask for fewer");
        let json = serde_json::to_value(&problem).unwrap();
        let expected = serde_json::json!({
            "type": "about:blank", "title": "Bad Request", "status": 400,
            "detail": "top: expected 1 to 3, found 9", "hint": "ask for fewer",
        });
        assert_eq!(json, expected);
        let response = Problem::busy("full").into_response();
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }
}
