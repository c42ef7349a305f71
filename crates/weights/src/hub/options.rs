//! What the environment says about the hub, in the variables of Hugging Face's own tools.

use fs_err as fs;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The hub that is asked when no other is named.
pub const ENDPOINT: &str = "https://huggingface.co";
/// How long a hub may send nothing.
const PATIENCE: Duration = Duration::from_secs(60);
/// A file with a token holds one line.
const LONGEST_TOKEN_FILE: u64 = 64 << 10;

/// A string that is never printed: a token, or a proxy with its password.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `value` from `Debug`.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(not shown)")
    }
}

/// A token of an account, and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub(super) value: Secret,
    /// The variable or the file, for messages.
    pub(super) from: String,
}

impl Token {
    /// `value` without the white space that files end with; `None` if nothing is left.
    pub fn new(value: &str, from: impl Into<String>) -> Option<Self> {
        let value = value.trim();
        (!value.is_empty()).then(|| Self {
            value: Secret::new(value),
            from: from.into(),
        })
    }
}

/// The proxies of the usual variables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For `https`.
    pub(super) https: Option<Secret>,
    /// For `http`.
    pub(super) http: Option<Secret>,
    /// Hosts that are reached without one, as in `NO_PROXY`.
    pub(super) exceptions: Vec<String>,
}

impl Proxies {
    fn from_variables(variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let first = |names: &[&str]| names.iter().find_map(|name| variable(name));
        let of = |names: &[&str]| first(names).map(Secret::new);
        let exceptions = first(&["no_proxy", "NO_PROXY"]).unwrap_or_default();
        Self {
            https: of(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]),
            http: of(&["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]),
            exceptions: exceptions
                .split(',')
                .map(|host| host.trim().to_ascii_lowercase())
                .filter(|host| !host.is_empty())
                .collect(),
        }
    }

    /// The proxy for an address of a host, without its port.
    pub(super) fn of(&self, is_https: bool, host: &str) -> Option<&Secret> {
        let proxy = match is_https {
            true => self.https.as_ref(),
            false => self.http.as_ref(),
        };
        proxy.filter(|_| !self.exceptions.iter().any(|rule| is_exception(rule, host)))
    }
}

/// Whether a rule of `NO_PROXY` names a host: `*`, the host itself, or a domain above it, with or
/// without a dot or `*.` before it.
fn is_exception(rule: &str, host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    let rule = rule.trim_start_matches('*').trim_start_matches('.');
    match host.strip_suffix(rule) {
        Some(before) => before.is_empty() || before.ends_with('.') || rule.is_empty(),
        None => false,
    }
}

/// Where to look for models, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubOptions {
    /// The hub's address.
    pub endpoint: String,
    /// The cache's folder; `None` where the machine has no home for it.
    pub cache: Option<PathBuf>,
    /// Look into the cache only.
    pub offline: bool,
    /// How long a hub may send nothing before it is given up.
    pub patience: Duration,
    /// Sent to the hub, and to no other host.
    pub token: Option<Token>,
    /// A file of root certificates (PEM) instead of the bundled ones.
    pub roots: Option<PathBuf>,
    /// The proxies.
    pub proxies: Proxies,
}

impl HubOptions {
    /// As the environment says.
    pub fn from_env() -> Self {
        Self::from_variables(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    pub(super) fn from_variables(variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let path = |name: &str| variable(name).map(PathBuf::from);
        let is_on = |name: &str| {
            variable(name).is_some_and(|value| {
                ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str())
            })
        };
        let home = path("HF_HOME")
            .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| {
                let home = path("HOME").or_else(|| path("USERPROFILE"))?;
                Some(home.join(".cache/huggingface"))
            });
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| Some(home.as_ref()?.join("hub")));
        let token_file = path("HF_TOKEN_PATH").or_else(|| Some(home.as_ref()?.join("token")));
        let token = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]
            .iter()
            .find_map(|name| Token::new(&variable(name)?, *name))
            .or_else(|| token_of_file(&token_file?))
            .filter(|_| !is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN"));
        Self {
            endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned()),
            cache,
            offline: is_on("HF_HUB_OFFLINE") || is_on("TRANSFORMERS_OFFLINE"),
            patience: PATIENCE,
            token,
            roots: path("SSL_CERT_FILE"),
            proxies: Proxies::from_variables(variable),
        }
    }
}

/// The token that `hf auth login` wrote; none if there is no such file or it cannot be read, for
/// most models need none.
fn token_of_file(path: &Path) -> Option<Token> {
    let mut text = String::new();
    let file = fs::File::open(path).ok()?;
    file.take(LONGEST_TOKEN_FILE)
        .read_to_string(&mut text)
        .ok()?;
    Token::new(&text, path.display().to_string())
}
