//! Tests of fetching from a hub: against a server of their own.

use super::*;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// A hub of one thread on this machine: paths to answers.
struct Server {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

#[derive(Clone)]
enum Answer {
    File(Vec<u8>),
    Redirect(String),
    Cut(Vec<u8>),
    Stall(Vec<u8>),
    Tagged(Vec<u8>, String),
    Status(u16),
}

fn serve(answers: BTreeMap<String, Answer>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut request = String::new();
            reader.read_line(&mut request).unwrap();
            let mut line = String::new();
            while reader.read_line(&mut line).unwrap() > 2 {
                line.clear();
            }
            let path = request.split_whitespace().nth(1).unwrap_or("").to_owned();
            log.lock().unwrap().push(path.clone());
            let (head, body, claimed) = match answers.get(&path) {
                Some(Answer::File(body)) => (
                    "200 OK\r\nETag: \"tag\"".to_owned(),
                    body.clone(),
                    body.len(),
                ),
                Some(Answer::Cut(body)) => ("200 OK".to_owned(), body.clone(), body.len() + 100),
                Some(Answer::Stall(body)) => ("200 OK".to_owned(), body.clone(), body.len() + 100),
                Some(Answer::Tagged(body, tag)) => (
                    format!("200 OK\r\nX-Repo-Commit: abc123\r\nX-Linked-ETag: \"{tag}\""),
                    body.clone(),
                    body.len(),
                ),
                Some(Answer::Redirect(to)) => (
                    format!(
                        "302 Found\r\nLocation: {to}\r\nX-Repo-Commit: abc123\r\nX-Linked-ETag: \"{}\"",
                        path.replace('/', "_").trim_start_matches('_')
                    ),
                    vec![],
                    0,
                ),
                Some(Answer::Status(status)) => (format!("{status} No"), vec![], 0),
                None => ("404 Not Found".to_owned(), vec![], 0),
            };
            let head = format!(
                "HTTP/1.1 {head}\r\nContent-Length: {claimed}\r\nConnection: close\r\n\r\n"
            );
            // A client that has seen enough may have gone.
            let _ = stream
                .write_all(head.as_bytes())
                .and_then(|()| stream.write_all(&body));
            if matches!(answers.get(&path), Some(Answer::Stall(_))) {
                std::thread::sleep(Duration::from_secs(5));
            }
        }
    });
    Server { address, asked }
}

fn options(server: &Server, cache: &Path) -> HubOptions {
    HubOptions {
        endpoint: server.address.clone(),
        cache: Some(cache.to_owned()),
        offline: false,
        patience: Duration::from_secs(30),
    }
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
    let hash = Sha256::digest(&weights);
    let tag: String = { hash.iter() }.map(|byte| format!("{byte:02x}")).collect();
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
    let asked = server.asked.lock().unwrap().len();
    assert_eq!(fetch("some/model", &options).unwrap(), folder);
    let offline = HubOptions {
        offline: true,
        ..options
    };
    assert_eq!(fetch("some/model", &offline).unwrap(), folder);
    assert_eq!(
        server.asked.lock().unwrap().len(),
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
    let asked = server.asked.lock().unwrap().len();
    let offline = HubOptions {
        offline: true,
        ..online.clone()
    };
    let message = fetch("some/model", &offline).unwrap_err().to_string();
    assert!(message.contains("HF_HUB_OFFLINE"), "{message}");
    assert_eq!(
        server.asked.lock().unwrap().len(),
        asked,
        "asked although offline"
    );
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
    assert!(server.asked.lock().unwrap().is_empty());
}

#[test]
fn failures_on_the_way_leave_nothing_half_done() {
    static RUN: AtomicUsize = AtomicUsize::new(0);
    for (answer, expected) in [
        (Answer::Cut(b"half".to_vec()), ""),
        (Answer::Status(500), "status 500"),
        (Answer::Status(401), "has no model.safetensors"),
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

#[test]
fn curl_fetches_the_same() {
    if Command::new("curl").arg("--version").output().is_err() {
        // Only `https` needs it.
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = serve(repository());
    let to = folder.path().join("file");
    let address = format!("{}/some/model/resolve/main/config.json", server.address);
    let headers = download_curl(&address, &to, PATIENCE).unwrap().unwrap();
    assert_eq!(headers.commit.as_deref(), Some("abc123"));
    assert_eq!(fs::read_to_string(&to).unwrap(), "contents of config.json");
    let absent = format!("{}/absent", server.address);
    assert_eq!(download_curl(&absent, &to, PATIENCE).unwrap(), None);
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
}
