//! Tests of fetching from a hub: against a server of their own.

use super::server::{Answer, Server, secure, serve};
use super::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

fn options(server: &Server, cache: &Path) -> HubOptions {
    HubOptions {
        endpoint: server.address.clone(),
        cache: Some(cache.to_owned()),
        offline: false,
        patience: Duration::from_secs(30),
        token: None,
        roots: None,
        proxies: Proxies::default(),
    }
}

fn hex_sha256(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn repository() -> BTreeMap<String, Answer> {
    let mut answers = BTreeMap::new();
    for file in [HUGGING_FACE[0], HUGGING_FACE[1], PREPROCESSOR] {
        let at = format!("/some/model/resolve/main/{file}");
        answers.insert(at, Answer::Redirect(format!("/store/{file}")));
        let body = Answer::File(format!("contents of {file}").into_bytes());
        answers.insert(format!("/store/{file}"), body);
    }
    answers
}

#[test]
fn a_hub_that_stops_sending_is_given_up() {
    let cache = tempfile::tempdir().unwrap();
    let mut answers = repository();
    let body = Answer::Stall(b"half of it".to_vec());
    answers.insert(format!("/store/{}", HUGGING_FACE[1]), body);
    let mut options = options(&serve(answers), cache.path());
    options.patience = Duration::from_millis(200);
    let error = fetch("some/model", &options).unwrap_err().to_string();
    assert!(
        error.contains("nothing came for 0.2 s after 10 bytes"),
        "{error}"
    );
}

#[test]
fn what_came_damaged_does_not_enter_the_cache() {
    let cache = tempfile::tempdir().unwrap();
    let mut answers = repository();
    let weights = b"the weights".to_vec();
    let tag = hex_sha256(&weights);
    let at = format!("/some/model/resolve/main/{}", HUGGING_FACE[1]);
    let mut damaged = weights.clone();
    damaged[3] ^= 0x40;
    answers.insert(at.clone(), Answer::Tagged(damaged, tag.clone()));
    let error = fetch(
        "some/model",
        &options(&serve(answers.clone()), cache.path()),
    );
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("it came damaged") && error.contains(&tag),
        "{error}"
    );
    let blobs = cache.path().join("models--some--model/blobs");
    for blob in fs::read_dir(&blobs).unwrap() {
        let name = blob.unwrap().file_name().to_string_lossy().into_owned();
        assert!(
            !name.contains(&tag) && !name.contains("incomplete"),
            "{name}"
        );
    }
    answers.insert(at, Answer::Tagged(weights, tag.clone()));
    fetch("some/model", &options(&serve(answers), cache.path())).unwrap();
    assert!(blobs.join(tag).is_file());
}

#[test]
fn a_model_is_fetched_once_in_the_usual_layout() {
    let cache = tempfile::tempdir().unwrap();
    let server = serve(repository());
    let options = options(&server, cache.path());
    let folder = fetch("some/model", &options).unwrap();
    assert_eq!(
        folder,
        cache.path().join("models--some--model/snapshots/abc123")
    );
    for file in [HUGGING_FACE[0], HUGGING_FACE[1], PREPROCESSOR] {
        assert_eq!(
            fs::read_to_string(folder.join(file)).unwrap(),
            format!("contents of {file}")
        );
    }
    let asked = server.asked().len();
    assert_eq!(fetch("some/model", &options).unwrap(), folder);
    let offline = HubOptions {
        offline: true,
        ..options
    };
    assert_eq!(fetch("some/model", &offline).unwrap(), folder);
    assert_eq!(
        server.asked().len(),
        asked,
        "asked again for what is cached"
    );
    let blobs = fs::read_dir(cache.path().join("models--some--model/blobs")).unwrap();
    assert!(
        blobs
            .flatten()
            .all(|blob| !blob.file_name().to_string_lossy().contains("incomplete"))
    );
}

#[test]
fn what_lies_here_goes_before_the_hub() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let options = options(&serve(repository()), &cache);
    let found = |path: &Path| existing_or_fetched(path, &options).unwrap();
    // Neither what is there nor what no model is called like is asked for.
    let (here, nowhere) = (folder.path().join("some"), Path::new("a/b/c.pth"));
    fs::create_dir_all(&here).unwrap();
    assert_eq!(found(&here), here);
    assert_eq!(found(nowhere), nowhere);
    assert!(!cache.exists());
    let fetched = found(Path::new("some/model"));
    assert!(fetched.starts_with(&cache) && fetched.join(HUGGING_FACE[1]).is_file());
}

#[test]
fn open_clip_files_are_preferred() {
    let cache = tempfile::tempdir().unwrap();
    let mut answers = repository();
    for file in OPEN_CLIP {
        answers.insert(
            format!("/some/model/resolve/main/{file}"),
            Answer::File(b"here".to_vec()),
        );
    }
    let server = serve(answers);
    let folder = fetch("some/model", &options(&server, cache.path())).unwrap();
    assert!(OPEN_CLIP.iter().all(|file| folder.join(file).is_file()));
    assert!(!folder.join(HUGGING_FACE[1]).exists());
}

#[test]
fn what_cannot_be_fetched_says_which_files_to_put_where() {
    let cache = tempfile::tempdir().unwrap();
    let server = serve(BTreeMap::new());
    let online = options(&server, cache.path());
    let message = fetch("some/model", &online).unwrap_err().to_string();
    assert!(message.contains("open_clip_model.safetensors"), "{message}");
    assert!(message.contains("hint: give a folder"), "{message}");
    let asked = server.asked().len();
    let offline = HubOptions {
        offline: true,
        ..online.clone()
    };
    let message = fetch("some/model", &offline).unwrap_err().to_string();
    assert!(message.contains("HF_HUB_OFFLINE"), "{message}");
    assert_eq!(server.asked().len(), asked, "asked although offline");
    let homeless = HubOptions {
        cache: None,
        ..online
    };
    assert!(fetch("some/model", &homeless).is_err());
}

#[test]
fn a_name_never_leads_out_of_the_cache() {
    let cache = tempfile::tempdir().unwrap();
    let server = serve(BTreeMap::new());
    let options = options(&server, cache.path());
    for name in [
        "model",
        "../..",
        "a/../b",
        "/etc/passwd",
        "a/b/c",
        "a b/c",
        "a/",
        "a/.b",
        "-/../-",
        "",
    ] {
        let message = fetch(name, &options).unwrap_err().to_string();
        assert!(
            message.contains("the name of a model (owner/model)"),
            "{name}: {message}"
        );
    }
    assert!(server.asked().is_empty());
}

#[test]
fn failures_on_the_way_leave_nothing_half_done() {
    static RUN: AtomicUsize = AtomicUsize::new(0);
    for (answer, expected) in [
        (
            Answer::Cut(b"half".to_vec()),
            "the connection broke after 4 bytes",
        ),
        (Answer::Status(500), "status 500"),
        (
            Answer::Status(401),
            "status 401: it is gated, private or absent",
        ),
        (Answer::Huge, "99999999999 bytes, more than the 17179869184"),
        (
            Answer::Redirect("/some/model/resolve/main/model.safetensors".into()),
            "too many redirections",
        ),
        (
            Answer::Redirect("ftp://elsewhere".into()),
            "a redirection to",
        ),
    ] {
        let cache = tempfile::tempdir().unwrap();
        let run = RUN.fetch_add(1, Ordering::Relaxed);
        let mut answers = repository();
        answers.insert("/some/model/resolve/main/model.safetensors".into(), answer);
        let server = serve(answers);
        let message = fetch("some/model", &options(&server, cache.path()))
            .unwrap_err()
            .to_string();
        assert!(message.contains(expected), "{run}: {message}");
        let blobs = fs::read_dir(cache.path().join("models--some--model/blobs")).unwrap();
        assert!(
            blobs
                .flatten()
                .all(|blob| !blob.file_name().to_string_lossy().contains("incomplete"))
        );
    }
}

/// Weights longer than the buffers on the way, so that a part of them arrives before a break.
fn long_weights() -> (Vec<u8>, String) {
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let tag = hex_sha256(&bytes);
    (bytes, tag)
}

const WEIGHTS: &str = "/some/model/resolve/main/model.safetensors";

#[test]
fn a_connection_that_breaks_is_taken_up_where_it_broke() {
    let (bytes, tag) = long_weights();
    for ranges in [true, false] {
        let cache = tempfile::tempdir().unwrap();
        let mut answers = repository();
        let answer = Answer::Broken {
            body: bytes.clone(),
            tag: tag.clone(),
            after: 1_300_000,
            ranges,
        };
        answers.insert(WEIGHTS.into(), answer);
        let server = serve(answers);
        let result = fetch("some/model", &options(&server, cache.path()));
        let asked: Vec<String> = { server.asked().into_iter() }
            .filter(|request| request.path == WEIGHTS)
            .map(|request| request.header("range").unwrap_or_default())
            .collect();
        if ranges {
            assert_eq!(asked, ["", "bytes=1300000-", "bytes=2600000-"]);
            assert_eq!(
                fs::read(result.unwrap().join("model.safetensors")).unwrap(),
                bytes
            );
        } else {
            // It always begins anew, so that it never gets further.
            let message = result.unwrap_err().to_string();
            assert!(message.contains("broke after 1300000 bytes"), "{message}");
        }
    }
}

#[test]
fn the_next_call_goes_on_where_the_last_one_stopped() {
    let (bytes, tag) = long_weights();
    let cache = tempfile::tempdir().unwrap();
    let mut answers = repository();
    let stall = |body: &[u8]| Answer::StallTagged(body.to_vec(), tag.clone());
    answers.insert(WEIGHTS.into(), stall(&bytes[..1_000_000]));
    let mut options = options(&serve(answers.clone()), cache.path());
    options.patience = Duration::from_millis(200);
    let message = fetch("some/model", &options).unwrap_err().to_string();
    assert!(
        message.contains("nothing came for 0.2 s after 1000000"),
        "{message}"
    );

    let mut answer = |body: Vec<u8>| {
        let after = body.len();
        let (tag, ranges) = (tag.clone(), true);
        let answer = Answer::Broken {
            body,
            tag,
            after,
            ranges,
        };
        answers.insert(WEIGHTS.into(), answer);
        let server = serve(answers.clone());
        options.endpoint.clone_from(&server.address);
        (fetch("some/model", &options), server)
    };
    // What was kept is wrong: noticed, removed, and then fetched from the beginning.
    let blobs = cache.path().join("models--some--model/blobs");
    let kept = blobs.join(format!("{tag}.clasp.incomplete"));
    fs::write(&kept, &bytes[1..1_000_001]).unwrap();
    let (result, _) = answer(bytes.clone());
    let message = result.unwrap_err().to_string();
    assert!(message.contains("it came damaged"), "{message}");
    assert!(!kept.exists());
    for kept_bytes in [1_000_000, bytes.len()] {
        fs::write(&kept, &bytes[..kept_bytes]).unwrap();
        let (result, server) = answer(bytes.clone());
        let folder = result.unwrap();
        assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), bytes);
        let last = server.asked().pop().unwrap();
        assert_eq!(last.header("range"), Some(format!("bytes={kept_bytes}-")));
        fs::remove_dir_all(folder).unwrap();
    }
}

#[test]
fn a_token_goes_to_the_hub_and_nowhere_else() {
    let cache = tempfile::tempdir().unwrap();
    let elsewhere = serve(BTreeMap::from([(
        "/bytes".to_owned(),
        Answer::File(b"weights".to_vec()),
    )]));
    let mut answers = repository();
    answers.insert(
        WEIGHTS.into(),
        Answer::Redirect(format!("{}/bytes", elsewhere.address)),
    );
    let server = serve(answers);
    let mut options = options(&server, cache.path());
    options.token = Token::new(" hf_secret\n", "HF_TOKEN");
    fetch("some/model", &options).unwrap();
    let sent = |server: &Server| -> Vec<Option<String>> {
        let asked = server.asked().into_iter();
        asked
            .map(|request| request.header("authorization"))
            .collect()
    };
    assert_eq!(sent(&elsewhere), [None]);
    // Redirections within the hub keep it.
    assert!(sent(&server).len() > 3);
    for token in sent(&server) {
        assert_eq!(token.as_deref(), Some("Bearer hf_secret"));
    }
    assert!(!format!("{options:?}").contains("secret"), "{options:?}");
    options.token = Token::new("two lines\nof text", "HF_TOKEN");
    let message = fetch("other/model", &options).unwrap_err().to_string();
    assert!(message.contains("HF_TOKEN: expected a token"), "{message}");
    assert!(!message.contains("two lines"), "{message}");
}

#[test]
fn a_refusal_says_what_to_do() {
    let cache = tempfile::tempdir().unwrap();
    for (status, token, expected) in [
        (401, None, "set HF_TOKEN to a token of your account"),
        (401, Some("t"), "the token of HF_TOKEN is not accepted"),
        (403, None, "set HF_TOKEN"),
        (
            403,
            Some("t"),
            "the account of the token of HF_TOKEN has no access",
        ),
    ] {
        let mut answers = repository();
        answers.insert(
            "/some/model/resolve/main/open_clip_config.json".into(),
            Answer::Refused(status, "GatedRepo".into()),
        );
        let server = serve(answers);
        let mut options = options(&server, cache.path());
        options.token = token.and_then(|token| Token::new(token, "HF_TOKEN"));
        let message = fetch("some/model", &options).unwrap_err().to_string();
        let page = format!("accept its license on {}/some/model", server.address);
        for part in [expected, &page, &format!("status {status} (GatedRepo)")] {
            assert!(message.contains(part), "{part} is not in: {message}");
        }
    }
}

#[test]
fn tls_with_a_root_of_ones_own() {
    let cache = tempfile::tempdir().unwrap();
    let mut answers = repository();
    answers.insert(
        "/down/grade/resolve/main/open_clip_config.json".into(),
        Answer::Redirect("http://127.0.0.1:1/plain".into()),
    );
    let (server, root) = secure(answers);
    let mut options = options(&server, cache.path());
    assert!(options.endpoint.starts_with("https://localhost:"));
    // Not by the bundled roots.
    let message = fetch("some/model", &options).unwrap_err().to_string();
    assert!(message.contains("certificate"), "{message}");
    let roots = cache.path().join("root.pem");
    options.roots = Some(roots.clone());
    fs::write(&roots, "no certificate").unwrap();
    let message = fetch("some/model", &options).unwrap_err().to_string();
    assert!(message.contains("root.pem (SSL_CERT_FILE)"), "{message}");
    fs::write(&roots, root).unwrap();
    let folder = fetch("some/model", &options).unwrap();
    let weights = fs::read_to_string(folder.join("model.safetensors")).unwrap();
    assert_eq!(weights, "contents of model.safetensors");
    // TLS is not given up on the way.
    let message = fetch("down/grade", &options).unwrap_err().to_string();
    assert!(message.contains("which is not encrypted"), "{message}");
    // The certificate is that of `localhost`.
    options.endpoint = options.endpoint.replace("localhost", "127.0.0.1");
    let message = fetch("other/model", &options).unwrap_err().to_string();
    assert!(message.contains("certificate"), "{message}");
}

#[test]
fn proxies_are_those_of_the_variables() {
    let cache = tempfile::tempdir().unwrap();
    let server = serve(repository());
    // A proxy that is asked to connect, and then is the server itself.
    let proxy = serve(repository());
    let variables = BTreeMap::from([
        ("http_proxy", proxy.address.clone()),
        (
            "NO_PROXY",
            "example.org, .example.com,*.example.net".to_owned(),
        ),
    ]);
    let from = |variables: &BTreeMap<&str, String>| {
        HubOptions::from_variables(&|name| variables.get(name).cloned()).proxies
    };
    let mut options = options(&server, cache.path());
    options.endpoint = "http://hub.test".to_owned();
    options.proxies = from(&variables);
    fetch("some/model", &options).unwrap();
    let connected = proxy.asked().into_iter();
    let connected: Vec<String> = { connected.filter(|request| request.method == "CONNECT") }
        .map(|request| request.path)
        .collect();
    assert!(connected.iter().all(|to| to == "hub.test:80") && !connected.is_empty());
    assert!(server.asked().is_empty());
    for (host, direct) in [
        ("example.org", true),
        ("www.example.org", true),
        ("WWW.example.com", true),
        ("a.b.example.net", true),
        ("notexample.org", false),
        ("hub.test", false),
    ] {
        assert_eq!(options.proxies.of(false, host).is_none(), direct, "{host}");
        assert!(options.proxies.of(true, host).is_none());
    }
    let all = from(&BTreeMap::from([
        ("ALL_PROXY", "x".to_owned()),
        ("no_proxy", "*".to_owned()),
    ]));
    assert!(all.of(true, "hub.test").is_none());
    options.proxies = from(&BTreeMap::from([(
        "HTTP_PROXY",
        "gopher://u:secret@h".to_owned(),
    )]));
    let message = fetch("other/model", &options).unwrap_err().to_string();
    assert!(message.contains("HTTP_PROXY or ALL_PROXY"), "{message}");
    assert!(!message.contains("secret"), "{message}");
    assert!(!format!("{options:?}").contains("secret"));
}

#[test]
fn two_programs_do_not_fetch_the_same_at_once() {
    let cache = tempfile::tempdir().unwrap();
    let server = serve(repository());
    let options = options(&server, cache.path());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| fetch("some/model", &options).unwrap());
        }
    });
    let weights = |request: &super::server::Request| request.path == WEIGHTS;
    assert_eq!(
        server
            .asked()
            .iter()
            .filter(|request| weights(request))
            .count(),
        1
    );
}

#[test]
fn a_hub_that_is_not_there_is_named() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", closed.local_addr().unwrap());
    drop(closed);
    let cache = tempfile::tempdir().unwrap();
    let mut options = options(&serve(BTreeMap::new()), cache.path());
    options.endpoint = address.clone();
    let message = fetch("some/model", &options).unwrap_err().to_string();
    assert!(
        message.contains(&format!("{address}/some/model/resolve/main")),
        "{message}"
    );
}

#[test]
fn the_environment_decides() {
    let from = |variables: &[(&str, &str)]| {
        let variables: BTreeMap<String, String> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        HubOptions::from_variables(&|name| variables.get(name).cloned())
    };
    let options = from(&[("HOME", "/h")]);
    assert_eq!(options.endpoint, ENDPOINT);
    assert_eq!(
        options.cache,
        Some(PathBuf::from("/h/.cache/huggingface/hub"))
    );
    assert!(!options.offline);
    let options = from(&[
        ("HOME", "/h"),
        ("HF_HOME", "/f"),
        ("HF_HUB_OFFLINE", "true"),
    ]);
    assert_eq!(options.cache, Some(PathBuf::from("/f/hub")));
    assert!(options.offline);
    let options = from(&[
        ("HF_HOME", "/f"),
        ("HUGGINGFACE_HUB_CACHE", "/c"),
        ("HF_HUB_OFFLINE", "0"),
        ("HF_ENDPOINT", "http://mirror"),
    ]);
    assert_eq!(options.cache, Some(PathBuf::from("/c")));
    assert!(!options.offline);
    assert_eq!(options.endpoint, "http://mirror");
    assert_eq!(from(&[]).cache, None);
    assert_eq!(from(&[]).token, None);
}

#[test]
fn the_token_is_found_where_others_find_it() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("token");
    fs::write(&file, "hf_of_the_file\n").unwrap();
    let elsewhere = home.path().join("elsewhere");
    fs::write(&elsewhere, "hf_elsewhere").unwrap();
    let of = |variables: &[(&str, &str)]| {
        let options = HubOptions::from_variables(&|name| match name {
            "HF_HOME" => home.path().to_str().map(str::to_owned),
            name => { variables.iter() }
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned()),
        });
        let token = options.token;
        token.map(|token| (token.value.reveal().to_owned(), token.from))
    };
    let is = |value: &str, from: &str| Some((value.to_owned(), from.to_owned()));
    assert_eq!(of(&[]), is("hf_of_the_file", file.to_str().unwrap()));
    let place = elsewhere.to_str().unwrap();
    assert_eq!(of(&[("HF_TOKEN_PATH", place)]), is("hf_elsewhere", place));
    assert_eq!(of(&[("HF_TOKEN", "hf_1")]), is("hf_1", "HF_TOKEN"));
    assert_eq!(
        of(&[("HUGGING_FACE_HUB_TOKEN", "hf_2")]),
        is("hf_2", "HUGGING_FACE_HUB_TOKEN")
    );
    assert_eq!(
        of(&[("HF_TOKEN", "hf_1"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]),
        None
    );
    assert_eq!(of(&[("HF_TOKEN_PATH", "/nowhere")]), None);
}

#[test]
fn a_download_ends_when_it_is_not_to_go_on() {
    let cache = tempfile::tempdir().unwrap();
    let server = serve(repository());
    let options = options(&server, cache.path());
    // At its second question, which is after bytes of the configuration have come.
    let asked = std::cell::Cell::new(0);
    let go_on = || {
        asked.set(asked.get() + 1);
        asked.get() < 2
    };
    let path = Path::new("some/model");
    let message = existing_or_fetched_while(path, &options, &go_on).unwrap_err();
    assert!(message.to_string().contains("stopped"), "{message}");
    assert_eq!(asked.get(), 2);
    assert!(server.asked().iter().all(|request| request.path != WEIGHTS));
    // Nothing that is half there is taken for a model later.
    let folder = existing_or_fetched_while(path, &options, &|| true).unwrap();
    assert_eq!(fetch("some/model", &options).unwrap(), folder);
}
