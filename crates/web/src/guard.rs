//! Who may ask: the token, and the headers that tell requests of foreign web pages.
//!
//! A server on a loopback address is reachable by every page that a browser of this machine shows.
//! Such a page can send requests to it, and with a name of its own that resolves to 127.0.0.1 read
//! the answers (DNS rebinding). Names in `Host` are therefore compared with those that this server
//! is known by, and requests that a browser marks as coming from elsewhere are refused.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::error::ServeError;
use crate::problem::Problem;

/// Fewest characters of a token.
const SHORTEST: usize = 16;

/// Who may ask.
#[derive(Clone, Debug)]
pub struct Guard {
    /// SHA-256 of the token: all of one length, whatever is sent.
    token: Option<[u8; 32]>,
    /// Names in `Host`, beside `localhost` and addresses.
    hosts: Vec<String>,
}

impl Guard {
    /// Checks what protects an address.
    ///
    /// # Errors
    /// An address that others reach without a token, unless `insecure`; a token that is too short.
    pub fn new(
        listen: SocketAddr,
        token: Option<&str>,
        insecure: bool,
        hosts: &[String],
    ) -> Result<Self, ServeError> {
        if let Some(token) = token {
            let plain = token.bytes().all(|byte| byte.is_ascii_graphic());
            if token.len() < SHORTEST || !plain {
                return Err(ServeError::Token {
                    least: SHORTEST,
                    found: match plain {
                        true => format!("{}", token.len()),
                        false => "a space, or a character that is not ASCII".to_owned(),
                    },
                });
            }
        } else if !listen.ip().is_loopback() && !insecure {
            return Err(ServeError::Unprotected(listen));
        }
        Ok(Self {
            token: token.map(|token| Sha256::digest(token).into()),
            hosts: hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
        })
    }

    /// Whether requests need a token.
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Checks the head of a request; `is_open`: what it asks for is no secret.
    ///
    /// # Errors
    /// 400 or 421 for the host, 403 for the origin, 401 for the token.
    pub fn check(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        is_open: bool,
    ) -> Result<(), Problem> {
        let host = self.check_host(uri, headers)?;
        if !is_open || !is_safe(method) {
            check_origin(method, host, headers)?;
        }
        match is_open {
            true => Ok(()),
            false => self.check_token(headers),
        }
    }

    fn check_host<'a>(&self, uri: &'a Uri, headers: &'a HeaderMap) -> Result<&'a str, Problem> {
        let mut hosts = headers.get_all(header::HOST).iter();
        let host = match (hosts.next(), hosts.next()) {
            (Some(host), None) => host.to_str().ok(),
            (None, None) => uri.authority().map(|authority| authority.as_str()),
            _ => None,
        };
        let host = host.ok_or_else(|| {
            Problem::bad_request("Host: expected one name or address in the head of the request")
        })?;
        let name = without_port(host).to_ascii_lowercase();
        // A page cannot make a browser send an address that is not its own.
        let address = name.trim_start_matches('[').trim_end_matches(']');
        let known =
            name == "localhost" || address.parse::<IpAddr>().is_ok() || self.hosts.contains(&name);
        match known {
            true => Ok(host),
            false => Err(Problem::new(
                StatusCode::MISDIRECTED_REQUEST,
                "Host: expected an address, localhost or a name of --host\n\
                 hint: start with --host NAME if the server is reached by that name",
            )),
        }
    }

    fn check_token(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let Some(token) = &self.token else {
            return Ok(());
        };
        let sent = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "))
            .unwrap_or_default();
        let sent: [u8; 32] = Sha256::digest(sent).into();
        match bool::from(sent.ct_eq(token)) {
            true => Ok(()),
            false => Err(Problem::new(
                StatusCode::UNAUTHORIZED,
                "Authorization: expected `Bearer` and the token of the server",
            )),
        }
    }
}

/// Methods that change nothing.
fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            // `::1` without brackets is an address, not a name with a port.
            if name.contains(':') && !name.ends_with(']') {
                host
            } else {
                name
            }
        }
        _ => host,
    }
}

/// Refuses what a browser sends for a page of another origin.
fn check_origin(method: &Method, host: &str, headers: &HeaderMap) -> Result<(), Problem> {
    let foreign = |found: &str| {
        Problem::new(
            StatusCode::FORBIDDEN,
            format!("Origin: expected a page of this server, found {found}"),
        )
    };
    if let Some(origin) = headers.get(header::ORIGIN) {
        let text = origin.to_str().unwrap_or("other bytes");
        let of = text
            .strip_prefix("http://")
            .or(text.strip_prefix("https://"));
        if !of.is_some_and(|of| of.eq_ignore_ascii_case(host)) {
            return Err(foreign(text));
        }
    }
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    match site {
        None | Some(b"same-origin" | b"none") => Ok(()),
        Some(_)
            if is_safe(method)
                && headers
                    .get("sec-fetch-mode")
                    .is_some_and(|mode| mode == "navigate") =>
        {
            // A link to a page shows it to the user, not to the page with the link.
            Ok(())
        }
        Some(_) => Err(foreign("a page of another one")),
    }
}

/// Headers of every answer: nothing from elsewhere is loaded or runs, and no other page embeds it.
pub const SECURITY_HEADERS: [(&str, &str); 6] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; \
         connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(token: Option<&str>) -> Guard {
        let listen = "127.0.0.1:8080".parse().unwrap();
        Guard::new(listen, token, false, &["Clasp.Example".to_owned()]).unwrap()
    }

    fn check(guard: &Guard, method: Method, headers: &[(&'static str, &str)]) -> u16 {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let uri = Uri::from_static("/v1/search");
        match guard.check(&method, &uri, &map, false) {
            Ok(()) => 200,
            Err(problem) => problem.status().as_u16(),
        }
    }

    #[test]
    fn elsewhere_than_on_loopback_a_token_is_needed() {
        let open = "0.0.0.0:80".parse().unwrap();
        assert!(matches!(
            Guard::new(open, None, false, &[]),
            Err(ServeError::Unprotected(_))
        ));
        assert!(Guard::new(open, None, true, &[]).is_ok());
        assert!(Guard::new(open, Some("0123456789abcdef"), false, &[]).is_ok());
        for token in ["0123456789abcde", "0123456789 abcdef"] {
            let error = Guard::new(open, Some(token), true, &[]).unwrap_err();
            assert!(matches!(error, ServeError::Token { .. }));
        }
        assert!(Guard::new("[::1]:80".parse().unwrap(), None, false, &[]).is_ok());
    }

    #[test]
    fn names_that_are_not_of_this_server_are_refused() {
        let guard = guard(None);
        for host in [
            "localhost:8080",
            "127.0.0.1",
            "[::1]:8080",
            "192.168.0.7:9",
            "clasp.example:443",
            "CLASP.example",
        ] {
            assert_eq!(check(&guard, Method::GET, &[("host", host)]), 200, "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "",
        ] {
            assert_eq!(check(&guard, Method::GET, &[("host", host)]), 421, "{host}");
        }
        assert_eq!(check(&guard, Method::GET, &[]), 400);
        let twice = [("host", "localhost"), ("host", "localhost")];
        assert_eq!(check(&guard, Method::GET, &twice), 400);
    }

    #[test]
    fn requests_of_foreign_pages_are_refused() {
        let guard = guard(None);
        let host = ("host", "localhost:8080");
        let of =
            |method: Method, header: (&'static str, &str)| check(&guard, method, &[host, header]);
        assert_eq!(of(Method::POST, ("origin", "http://localhost:8080")), 200);
        assert_eq!(of(Method::POST, ("origin", "https://localhost:8080")), 200);
        for origin in [
            "null",
            "http://localhost:8081",
            "http://evil.example",
            "localhost:8080",
        ] {
            assert_eq!(of(Method::POST, ("origin", origin)), 403, "{origin}");
            assert_eq!(of(Method::GET, ("origin", origin)), 403, "{origin}");
        }
        assert_eq!(of(Method::GET, ("sec-fetch-site", "cross-site")), 403);
        assert_eq!(of(Method::GET, ("sec-fetch-site", "same-origin")), 200);
    }

    #[test]
    fn a_token_is_compared() {
        let guard = guard(Some("0123456789abcdef"));
        let host = ("host", "localhost");
        let with = |value: &str| check(&guard, Method::GET, &[host, ("authorization", value)]);
        assert_eq!(with("Bearer 0123456789abcdef"), 200);
        for wrong in [
            "Bearer 0123456789abcdeF",
            "Bearer ",
            "0123456789abcdef",
            "Basic 0123456789abcdef",
        ] {
            assert_eq!(with(wrong), 401, "{wrong}");
        }
        assert_eq!(check(&guard, Method::GET, &[host]), 401);
    }
}
