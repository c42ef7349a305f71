//! Requests to a hub: TLS, proxies, redirections, and the token, which only the hub itself gets.

use super::options::{HubOptions, Proxies};
use fs_err as fs;
use std::fmt;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use ureq::http::HeaderMap;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

/// Redirections that are followed.
const REDIRECTIONS: usize = 5;
/// A connection that takes longer will not come.
const CONNECT: Duration = Duration::from_secs(30);
/// Largest file of root certificates: that of a system has a quarter of a megabyte.
const LARGEST_ROOTS: u64 = 16 << 20;

/// Why a file did not come.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The network, the hub or the disk.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The hub wants an account, or another one.
    #[error(transparent)]
    Denied(Denied),
}

/// The hub's status 401 or 403.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Denied {
    pub status: u16,
    /// The hub's word for it, such as `GatedRepo`.
    code: Option<String>,
}

impl std::error::Error for Denied {}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {}", self.status)?;
        match &self.code {
            Some(code) => write!(f, " ({code})"),
            None => Ok(()),
        }
    }
}

/// What the hub says about a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Headers {
    pub commit: Option<String>,
    pub tag: Option<String>,
    /// Bytes of a file that lies in a store behind the hub.
    pub size: Option<u64>,
}

impl Headers {
    /// The first hop names the commit and the file; hops behind it are a store of bytes.
    fn note(&mut self, headers: &HeaderMap) {
        let text = |name: &str| {
            let value = headers.get(name)?.to_str().ok()?;
            Some(value.trim().trim_start_matches("W/").trim_matches('"'))
        };
        let commit = || text("x-repo-commit").map(str::to_owned);
        // The tag of the target before the tag of the redirection.
        let tag = || { text("x-linked-etag").or_else(|| text("etag")) }.map(str::to_owned);
        self.commit = self.commit.take().or_else(commit);
        self.tag = self.tag.take().or_else(tag);
        let size = || text("x-linked-size")?.parse().ok();
        self.size = self.size.or_else(size);
    }
}

/// An answer with content.
pub(super) struct Content {
    pub headers: Headers,
    pub body: Box<dyn Read + Send>,
    /// Where in the file the body begins.
    pub from: u64,
    /// Bytes of the body, if the server says so.
    pub length: Option<u64>,
}

/// What a hub answers.
pub(super) enum Answer {
    Content(Content),
    /// There is no such file (404).
    Absent,
    /// The file ends before the byte that was asked for (416).
    Beyond,
}

/// One hub, as the options name it.
pub(super) struct Client<'a> {
    options: &'a HubOptions,
    go_on: &'a dyn Fn() -> bool,
    agent: ureq::Agent,
}

impl<'a> Client<'a> {
    /// An error once it is not to go on.
    pub fn check_stop(&self) -> io::Result<()> {
        match (self.go_on)() {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::Interrupted, "stopped")),
        }
    }

    /// A client of the hub in `options`; reads the root certificates.
    pub fn new(options: &'a HubOptions, go_on: &'a dyn Fn() -> bool) -> io::Result<Self> {
        let roots = match &options.roots {
            Some(path) => read_roots(path)?,
            None => RootCerts::WebPki,
        };
        let agent = ureq::Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(options.patience))
            .user_agent(concat!("clasp/", env!("CARGO_PKG_VERSION")))
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            // Chosen below for each address.
            .proxy(None)
            .build()
            .into();
        Ok(Self {
            options,
            go_on,
            agent,
        })
    }

    /// Asks for a file from a byte on, following redirections.
    pub fn get(&self, address: &str, from: u64) -> Result<Answer, Failure> {
        let mut address = address.to_owned();
        let mut headers = Headers::default();
        for _ in 0..=REDIRECTIONS {
            let response = self.request(&address, from)?;
            headers.note(response.headers());
            match response.status().as_u16() {
                200 => return Ok(content(headers, response, 0)),
                206 if begins_at(response.headers(), from) => {
                    return Ok(content(headers, response, from));
                }
                206 => {
                    let message = "it sent another part of the file than was asked for";
                    return Err(other(message.to_owned()));
                }
                301 | 302 | 303 | 307 | 308 => {
                    let target = response.headers().get("location");
                    let target = target.and_then(|value| value.to_str().ok());
                    address = redirection(&address, target.unwrap_or_default())?;
                }
                404 => return Ok(Answer::Absent),
                416 if from > 0 => return Ok(Answer::Beyond),
                status @ (401 | 403) => {
                    // A store behind the hub knows no accounts: its refusal is an error like others.
                    if !self.is_hub(&address) {
                        return Err(other(format!(
                            "status {status} of the store behind the hub"
                        )));
                    }
                    let code = response.headers().get("x-error-code");
                    let code = code.and_then(|code| code.to_str().ok());
                    let plain = |code: &&str| {
                        code.len() < 64 && code.chars().all(|c| c.is_ascii_alphanumeric())
                    };
                    let code = code.filter(plain).map(str::to_owned);
                    return Err(Failure::Denied(Denied { status, code }));
                }
                status => return Err(other(format!("status {status}"))),
            }
        }
        Err(other("too many redirections".to_owned()))
    }

    fn request(&self, address: &str, from: u64) -> io::Result<ureq::http::Response<ureq::Body>> {
        let proxy = proxy_of(&self.options.proxies, address)?;
        let mut request = self.agent.get(address).config().proxy(proxy).build();
        // A compressed body has other lengths and other positions.
        request = request.header("accept-encoding", "identity");
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        if let Some(token) = self.options.token.as_ref().filter(|_| self.is_hub(address)) {
            let value = token.value.reveal();
            if !value.bytes().all(|byte| byte.is_ascii_graphic()) {
                let from = &token.from;
                let message = format!("{from}: expected a token of letters and digits in one line");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
            request = request.header("authorization", format!("Bearer {value}"));
        }
        request.call().map_err(io::Error::other)
    }

    /// Whether an address is one of the hub itself: same scheme, host and port.
    fn is_hub(&self, address: &str) -> bool {
        let hub = origin(&self.options.endpoint);
        hub.is_some_and(|hub| origin(address).is_some_and(|of| of.eq_ignore_ascii_case(hub)))
    }
}

fn other(message: String) -> Failure {
    Failure::Io(io::Error::other(message))
}

fn content(headers: Headers, response: ureq::http::Response<ureq::Body>, from: u64) -> Answer {
    let length = response.headers().get("content-length");
    let length = length.and_then(|length| length.to_str().ok()?.trim().parse().ok());
    Answer::Content(Content {
        headers,
        body: Box::new(response.into_body().into_reader()),
        from,
        length,
    })
}

/// Whether a partial answer begins where it was asked to.
fn begins_at(headers: &HeaderMap, from: u64) -> bool {
    let range = headers
        .get("content-range")
        .and_then(|range| range.to_str().ok());
    let start = range.and_then(|range| range.trim().strip_prefix("bytes ")?.split('-').next());
    start.and_then(|start| start.trim().parse().ok()) == Some(from)
}

/// Scheme, host and port of an address as they are written. What is not written alike is another
/// host, so that nothing that only looks like the hub gets the token.
fn origin(address: &str) -> Option<&str> {
    let host = address.find("://")? + 3;
    let end = address[host..].find(['/', '?', '#', '\\']);
    Some(&address[..end.map_or(address.len(), |end| host + end)])
}

/// A redirection's target, which may lack the server, and may not give up TLS.
fn redirection(address: &str, target: &str) -> io::Result<String> {
    let server = origin(address).unwrap_or_default();
    let is_https = |address: &str| address.starts_with("https://");
    let resolved = match target {
        _ if is_https(target) || target.starts_with("http://") => target.to_owned(),
        _ if target.starts_with('/') && !target.starts_with("//") => format!("{server}{target}"),
        _ => return Err(io::Error::other(format!("a redirection to `{target}`"))),
    };
    if is_https(address) && !is_https(&resolved) {
        let message = format!("a redirection from https to `{target}`, which is not encrypted");
        return Err(io::Error::other(message));
    }
    Ok(resolved)
}

fn proxy_of(proxies: &Proxies, address: &str) -> io::Result<Option<ureq::Proxy>> {
    let Ok(uri) = address.parse::<ureq::http::Uri>() else {
        // The request below says what is wrong with it.
        return Ok(None);
    };
    let is_https = uri.scheme_str() == Some("https");
    let Some(proxy) = uri.host().and_then(|host| proxies.of(is_https, host)) else {
        return Ok(None);
    };
    ureq::Proxy::new(proxy.reveal()).map(Some).map_err(|error| {
        let scheme = if is_https { "HTTPS" } else { "HTTP" };
        let message = format!(
            "the proxy in {scheme}_PROXY or ALL_PROXY: {error}; expected \
             http://[USER:PASSWORD@]HOST:PORT, also https:// or socks5://"
        );
        io::Error::new(io::ErrorKind::InvalidInput, message)
    })
}

/// The root certificates of a PEM file, in place of the bundled ones.
fn read_roots(path: &Path) -> io::Result<RootCerts> {
    let invalid = |what: String| {
        let message = format!("{} (SSL_CERT_FILE): {what}", path.display());
        io::Error::new(io::ErrorKind::InvalidData, message)
    };
    let bytes = fs::metadata(path)?.len();
    if bytes > LARGEST_ROOTS {
        return Err(invalid(format!(
            "{bytes} bytes are no file of certificates"
        )));
    }
    let pem = fs::read(path)?;
    let mut roots = Vec::new();
    for item in parse_pem(&pem) {
        match item {
            Ok(PemItem::Certificate(root)) => roots.push(root),
            Ok(_) => {}
            Err(error) => return Err(invalid(error.to_string())),
        }
    }
    match roots.is_empty() {
        true => Err(invalid(
            "expected certificates in PEM, found none".to_owned(),
        )),
        false => Ok(RootCerts::Specific(Arc::new(roots))),
    }
}
