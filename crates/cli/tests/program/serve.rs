//! `clasp serve` over real HTTP: answers of the other commands, limits, hostile requests, a gallery
//! that survives kills, and stops that lose no request.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use clasp_data::source::Source;
use serde_json::{Value, json};

use crate::{TINY, command, done, drawn, refused};

/// An answer.
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    /// The JSON of the body.
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The objects of JSON lines.
    #[track_caller]
    fn lines(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        let text = String::from_utf8(self.body.clone()).expect("UTF-8");
        let lines = text.lines().map(serde_json::from_str);
        lines.collect::<Result<_, _>>().expect("JSON lines")
    }

    /// Checks that it is a problem of that status whose text holds `words`.
    #[track_caller]
    fn is_problem(&self, status: u16, words: &str) {
        let text = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, status, "{text}");
        assert!(
            self.head.contains("application/problem+json"),
            "{}",
            self.head
        );
        assert!(text.contains(words), "expected `{words}` in {text}");
        assert_eq!(self.json()["status"], status);
    }
}

/// A running server, killed when dropped.
struct Server {
    process: Child,
    address: SocketAddr,
    folder: tempfile::TempDir,
}

impl Server {
    #[track_caller]
    fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = fs_err::File::create(folder.path().join("log"))
            .unwrap()
            .into_file();
        let all = [
            &["serve", "--listen", "127.0.0.1:0", "--threads", "2"],
            arguments,
        ]
        .concat();
        let mut process = command(folder.path(), &all)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        let out = process.stdout.take().expect("its output");
        BufReader::new(out).read_line(&mut line).unwrap();
        let said = || fs_err::read_to_string(folder.path().join("log")).unwrap();
        let url = line.trim().strip_prefix("http://");
        let address = url
            .unwrap_or_else(|| panic!("{line}{}", said()))
            .parse()
            .unwrap();
        let server = Self {
            process,
            address,
            folder,
        };
        let began = Instant::now();
        while server.get("/ready").status != 200 {
            assert!(
                began.elapsed() < Duration::from_secs(120),
                "{}",
                server.said()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn said(&self) -> String {
        fs_err::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// The answer to these bytes; none where the server closes without one.
    fn send(&self, bytes: &[u8]) -> Option<Answer> {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        // The server may refuse before it has read everything.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        let status = head.get(9..12)?.parse().ok()?;
        let mut body = answer[end + 4..].to_vec();
        if head
            .to_ascii_lowercase()
            .contains("transfer-encoding: chunked")
        {
            body = unchunked(&body);
        }
        Some(Answer { status, head, body })
    }

    #[track_caller]
    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let host = format!("Host: {}\r\n", self.address);
        let headers: String = { headers.iter() }
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        let length = format!("Content-Length: {}\r\n", body.len());
        let head =
            format!("{method} {path} HTTP/1.1\r\n{host}{headers}{length}Connection: close\r\n\r\n");
        let answer = self.send(&[head.as_bytes(), body].concat());
        answer.unwrap_or_else(|| panic!("{method} {path}: no answer\n{}", self.said()))
    }

    #[track_caller]
    fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], &[])
    }

    #[track_caller]
    fn post(&self, path: &str, image: &[u8]) -> Answer {
        self.ask("POST", path, &[("Content-Type", "image/jpeg")], image)
    }

    #[track_caller]
    fn post_form(&self, path: &str, files: &[PathBuf]) -> Answer {
        let mut body = Vec::new();
        for file in files {
            let name = file.file_name().unwrap().to_string_lossy();
            write!(
                body,
                "--b\r\nContent-Disposition: form-data; name=\"image\"; filename=\"{name}\"\r\n\r\n"
            )
            .unwrap();
            body.extend(fs_err::read(file).unwrap());
            body.extend(b"\r\n");
        }
        body.extend(b"--b--\r\n");
        self.ask(
            "POST",
            path,
            &[("Content-Type", "multipart/form-data; boundary=b")],
            &body,
        )
    }

    fn keys(&self) -> BTreeSet<String> {
        let page = self.get("/v1/gallery?count=1000").json();
        let keys = page["keys"].as_array().expect("keys");
        keys.iter()
            .map(|key| key.as_str().unwrap().to_owned())
            .collect()
    }

    #[cfg(unix)]
    fn signal(&self, signal: &str) {
        let process = self.process.id().to_string();
        let sent = Command::new("kill")
            .args([signal, &process])
            .status()
            .unwrap();
        assert!(sent.success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if !std::thread::panicking() {
            assert!(!self.said().contains("panicked"), "{}", self.said());
        }
    }
}

fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(end) = body.windows(2).position(|two| two == b"\r\n") {
        let size = usize::from_str_radix(&String::from_utf8_lossy(&body[..end]), 16).unwrap();
        if size == 0 {
            break;
        }
        out.extend(&body[end + 2..end + 2 + size]);
        body = &body[end + 4 + size..];
    }
    out
}

/// A folder with a backbone, fine-tuned models and labels, made once.
fn models() -> &'static Path {
    static MADE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        let data = drawn().display().to_string();
        let images = format!("data.images={}", drawn().join("unlabeled").display());
        let mut run = vec!["pretrain", "mini", "--out", "run"];
        run.extend(TINY);
        run.extend(["--set", &images, "--set", "method=dino"]);
        done(at, &run);
        let scenes = drawn().join("scenes").display().to_string();
        for (task, data, own) in [
            (
                "reid",
                &data,
                &["model.size=[64,32]", "task.instances=2"][..],
            ),
            (
                "attributes",
                &data,
                &["model.size=[64,32]", "run.eval_every=0"],
            ),
            (
                "detection",
                &scenes,
                &[
                    "model.size=[64,96]",
                    "task.width=32",
                    "run.checkpoint_selection=last",
                ],
            ),
        ] {
            let recipe = format!("{task}-mini");
            let mut tune = vec!["finetune", task, &recipe, "--data", data, "--out", task];
            let tiny = ["model.backbone=swin-pico", "run.batch=4", "run.steps=2"];
            tune.extend(tiny.iter().chain(own).flat_map(|set| ["--set", *set]));
            done(at, &tune);
        }
        done(
            at,
            &[
                "eval",
                "reid",
                "--model",
                "reid",
                "--data",
                &data,
                "--calibrate",
                "0.2",
            ],
        );
        let unlabeled = drawn().join("unlabeled").display().to_string();
        done(at, &["label", &unlabeled, "--out", "labels"]);
        folder
    });
    made.path()
}

fn model(name: &str) -> String {
    models().join(name).display().to_string()
}

fn photos(folder: &str) -> Vec<PathBuf> {
    let entries = fs_err::read_dir(drawn().join(folder)).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jpg"));
    paths.sort();
    paths
}

fn read(path: &Path) -> Vec<u8> {
    fs_err::read(path).unwrap()
}

/// Key and bytes of an image of the tar of unlabeled people.
fn unlabeled(at: usize) -> (String, Vec<u8>) {
    let source = Source::open(&drawn().join("unlabeled").display().to_string()).unwrap();
    (source.key(at).to_owned(), source.read(at).unwrap())
}

/// A JSON file, or JSON lines, that a command wrote.
fn lines_of(path: &Path) -> Vec<Value> {
    let text = fs_err::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn answers_are_those_of_the_commands() {
    let (run, reid, attributes) = (model("run"), model("reid"), model("attributes"));
    let gallery = drawn()
        .join("market/bounding_box_test")
        .display()
        .to_string();
    let models = ["--model", &run, "--model", &reid, "--model", &attributes];
    let server = Server::start(&[&models[..], &["--gallery", &gallery]].concat());
    let queries = photos("market/query");
    let images = drawn().join("market/query").display().to_string();
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();

    let same = ["--gallery", &gallery, "--model", &reid, "--top", "5"];
    done(at, &[&["search", "--query", &images], &same[..]].concat());
    let found = server.post_form("/v1/search?top=5", &queries).lines();
    let expected = lines_of(&at.join("matches.jsonl"));
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        for member in ["query", "nobody"] {
            assert_eq!(found[member], expected[member]);
        }
        assert!(found["nobody"].is_boolean(), "{found}");
        let matches = |line: &Value| line["matches"].as_array().unwrap().clone();
        for (one, other) in matches(found).iter().zip(matches(expected)) {
            assert_eq!((&one["key"], &one["same"]), (&other["key"], &other["same"]));
            let cosine = |one: &Value| one["cosine"].as_f64().unwrap();
            assert!((cosine(one) - cosine(&other)).abs() < 1e-5, "{one} {other}");
        }
    }

    let predict = [
        "predict",
        "attributes",
        &images,
        "--model",
        &attributes,
        "--out",
        "p.jsonl",
    ];
    done(at, &predict);
    let found = server.post_form("/v1/predict/attributes", &queries).lines();
    for (found, expected) in found.iter().zip(lines_of(&at.join("p.jsonl"))) {
        assert_eq!(found["image"], expected["image"]);
        let of = |line: &Value| {
            line["prediction"]["attributes"]
                .as_object()
                .unwrap()
                .clone()
        };
        for (name, value) in of(&expected) {
            let difference = of(found)[&name].as_f64().unwrap() - value.as_f64().unwrap();
            assert!(difference.abs() < 1e-5, "{name}");
        }
    }

    done(
        at,
        &[
            "embed", &images, "--model", &run, "--out", "f.npy", "--prompt", "part",
        ],
    );
    let keys = fs_err::read_to_string(at.join("f.npy.keys.txt")).unwrap();
    let values = read(&at.join("f.npy"))[128..].to_vec();
    let found = server.post_form("/v1/embed?prompt=part", &queries).lines();
    let rows = values.chunks(values.len() / found.len());
    for ((found, key), row) in found.iter().zip(keys.lines()).zip(rows) {
        assert_eq!(found["key"], key);
        let (numbers, _) = row.as_chunks::<4>();
        let feature = found["feature"].as_array().unwrap();
        assert_eq!(feature.len(), numbers.len());
        for (value, number) in feature.iter().zip(numbers) {
            let expected = f64::from(f32::from_le_bytes(*number));
            assert!((value.as_f64().unwrap() - expected).abs() < 1e-4 * expected.abs().max(1.0));
        }
    }

    // An image of the gallery is its own best match, and a threshold may leave nobody.
    let key = server.keys().pop_first().unwrap();
    let own = server
        .post(&format!("/v1/search?top=1&key={key}"), &[])
        .lines();
    assert_eq!(
        (&own[0]["matches"][0]["key"], &own[0]["nobody"]),
        (&json!(key), &json!(false))
    );
    let state = server.get("/v1/models").json();
    assert_eq!(state["models"].as_array().map(Vec::len), Some(3));
    let text = String::from_utf8(server.get("/metrics").body).unwrap();
    let searched = "clasp_requests_total{route=\"/v1/search\",status=\"200\"} 2";
    assert!(text.contains(searched), "{text}");
    let description = server.get("/openapi.json").json();
    assert!(description["paths"]["/v1/gallery"]["delete"].is_object());
    for page in [
        "/",
        "/runs",
        "/labels",
        "/assets/people.js",
        "/assets/style.css",
    ] {
        let page = server.get(page);
        assert_eq!(page.status, 200);
        assert!(
            page.head
                .contains("content-security-policy: default-src 'none'"),
            "{}",
            page.head
        );
    }
}

#[test]
fn people_are_found_in_photos_and_pictures_are_drawn() {
    let (attributes, detection) = (model("attributes"), model("detection"));
    let server = Server::start(&["--model", &attributes, "--model", &detection]);
    let photo = read(&photos("scenes/images")[0]);
    let found = server
        .post("/v1/predict/attributes?people=detector", &photo)
        .lines();
    assert!(found[0]["people"].is_array(), "{}", found[0]);
    let accept = [("Accept", "image/png"), ("Content-Type", "image/jpeg")];
    let picture = server.ask("POST", "/v1/predict/detection", &accept, &photo);
    assert!(picture.head.contains("image/png") && picture.body.starts_with(b"\x89PNG"));
    let twice = server.post("/v1/predict/detection?people=detector", &photo);
    twice.is_problem(400, "detection detects people itself");
    // A model of re-identification is also the one that searches, and its feature has no picture.
    let reid = model("reid");
    let server = Server::start(&["--model", &reid, "--model", &detection]);
    server
        .ask("POST", "/v1/predict/reid", &accept, &photo)
        .is_problem(400, "cannot be drawn");
    let picture = server.ask("POST", "/v1/predict/reid?people=detector", &accept, &photo);
    assert!(picture.body.starts_with(b"\x89PNG"));
    let listed = server.get("/v1/models").json();
    assert_eq!(listed["models"][0]["searches"], true);
    let server = Server::start(&["--model", &attributes]);
    server
        .post("/v1/predict/pose", &photo)
        .is_problem(404, "clasp finetune pose");
    server
        .post("/v1/predict/poses", &photo)
        .is_problem(404, "reid, attributes, parsing");
    server
        .post("/v1/predict/%ff", &photo)
        .is_problem(404, "reid, attributes, parsing");
    server
        .post("/v1/embed", &photo)
        .is_problem(404, "--model BACKBONE");
}

#[test]
fn limits_hold() {
    let run = model("run");
    let limits = [
        "--max-body",
        "1",
        "--max-pixels",
        "1",
        "--max-images",
        "3",
        "--max-queue",
        "3",
        "--max-seconds",
        "2",
    ];
    let server = Server::start(&[&["--model", &run], &limits[..]].concat());
    let photos = photos("market/query");
    let image = read(&photos[0]);
    server
        .post("/v1/embed", &vec![0; (1 << 20) + 1])
        .is_problem(413, "--max-body");
    server
        .post_form("/v1/embed", &photos[..4])
        .is_problem(413, "--max-images");
    server
        .post("/v1/embed", b"no image")
        .is_problem(415, "not an image");
    server
        .post("/v1/embed", &image[..image.len() / 2])
        .is_problem(422, "cut short");
    server
        .post("/v1/embed", &[])
        .is_problem(400, "expected an image");
    server
        .post("/v1/embed?prompt=color", &image)
        .is_problem(400, "`color` is none of");
    server
        .post("/v1/embed?prompts=part", &image)
        .is_problem(400, "found `prompts`");
    let kind = [("Content-Type", "text/plain")];
    server
        .ask("POST", "/v1/embed", &kind, &image)
        .is_problem(415, "text/plain");
    server.get("/v1/embed").is_problem(405, "/openapi.json");
    server.get("/v1/nothing").is_problem(404, "/openapi.json");
    let twice = [photos[0].clone(), photos[0].clone()];
    server
        .post_form("/v1/embed", &twice)
        .is_problem(400, "twice");
    // 2000 x 1000 pixels, which the head of the file tells.
    let large = clasp_data::image::encode_png(&clasp_data::image::Rgb::filled(2000, 1000, [0; 3]));
    let kind = [("Content-Type", "image/png")];
    server
        .ask("POST", "/v1/embed", &kind, &large)
        .is_problem(413, "the limit is 1000000 pixels");

    // A body that does not come is not waited for, and neither is a client that stops reading.
    let began = Instant::now();
    let head = format!(
        "POST /v1/embed HTTP/1.1\r\nHost: {}\r\nContent-Length: 100\r\n\r\nx",
        server.address
    );
    server
        .send(head.as_bytes())
        .unwrap()
        .is_problem(408, "within 2 seconds");
    assert!(began.elapsed() < Duration::from_secs(8));
    for bytes in [
        format!(
            "GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n",
            "y".repeat(100_000)
        ),
        "GET / HTTP/1.1\r\nHost: localhost\r\n".to_owned() + &"X: y\r\n".repeat(200) + "\r\n",
    ] {
        assert_eq!(server.send(bytes.as_bytes()).unwrap().status, 431);
    }
    server.post("/v1/embed", &image).lines();
}

#[test]
fn foreign_pages_and_strangers_are_refused() {
    let run = model("run");
    let gallery = drawn()
        .join("market/bounding_box_test")
        .display()
        .to_string();
    let arguments = [
        "--model",
        &run,
        "--gallery",
        &gallery,
        "--token",
        "0123456789abcdef",
    ];
    let server = Server::start(&arguments);
    server.get("/v1/models").is_problem(401, "Bearer");
    assert_eq!(server.get("/").status, 200);
    let token = ("Authorization", "Bearer 0123456789abcdef");
    assert_eq!(server.ask("GET", "/v1/models", &[token], &[]).status, 200);
    let other = ("Authorization", "Bearer 0123456789abcdee");
    server
        .ask("GET", "/metrics", &[other], &[])
        .is_problem(401, "Bearer");
    let foreign = [token, ("Origin", "http://evil.example")];
    server
        .ask("POST", "/v1/search", &foreign, &[])
        .is_problem(403, "http://evil.example");
    let rebound = b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    server.send(rebound).unwrap().is_problem(421, "--host");
    // Nothing but the gallery is served, whatever is asked for.
    let secret = server.folder.path().join("secret.jpg");
    fs_err::write(&secret, read(&photos("market/query")[0])).unwrap();
    for key in [
        "../secret",
        "..%2Fsecret",
        &secret.display().to_string(),
        "%2e%2e/secret.jpg",
    ] {
        let path = format!("/v1/gallery/image?key={key}");
        server
            .ask("GET", &path, &[token], &[])
            .is_problem(404, "expected a key of the gallery");
        let answer = server.ask("GET", &format!("/assets/{key}"), &[token], &[]);
        assert_eq!(answer.status, 404, "{key}");
    }
    let folder = tempfile::tempdir().unwrap();
    let listen = ["serve", "--model", &run, "--listen", "0.0.0.0:0"];
    refused(
        folder.path(),
        &listen,
        &["loopback", "--token", "--insecure"],
    );
    let short = ["serve", "--model", &run, "--token", "short"];
    refused(folder.path(), &short, &["--token", "at least 16"]);
    let twice = ["serve", "--model", &run, "--model", &run];
    refused(folder.path(), &twice, &["expected one backbone"]);
    let attributes = model("attributes");
    let gallery = [
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--model",
        &attributes,
        "--gallery",
        &gallery,
    ];
    refused(
        folder.path(),
        &gallery,
        &["--gallery", "a model to search with"],
    );
}

#[cfg(unix)]
#[test]
fn what_was_acknowledged_survives_kills() {
    let run = model("run");
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store").display().to_string();
    let photos = photos("market/bounding_box_test");
    let mut here = BTreeSet::new();
    for round in 0..4_u64 {
        let mut server = Server::start(&["--model", &run, "--store", &store]);
        assert!(server.keys().is_superset(&here), "round {round}");
        let acknowledged = std::sync::Mutex::new(BTreeSet::new());
        std::thread::scope(|scope| {
            let (server, acknowledged) = (&server, &acknowledged);
            for worker in 0..2 {
                let photos = &photos;
                scope.spawn(move || {
                    for (count, photo) in photos.iter().enumerate() {
                        let key = format!("{round}-{worker}-{count}");
                        let head = format!(
                            "POST /v1/gallery?key={key} HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                            read(photo).len()
                        );
                        let stream = TcpStream::connect(server.address);
                        let Ok(mut stream) = stream else { return };
                        let mut answer = Vec::new();
                        let _ = stream.write_all(&[head.as_bytes(), &read(photo)].concat());
                        let _ = stream.read_to_end(&mut answer);
                        if !answer.starts_with(b"HTTP/1.1 201") {
                            return;
                        }
                        acknowledged.lock().unwrap().insert(key);
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(60 + 90 * round));
            server.signal("-KILL");
        });
        server.process.wait().unwrap();
        here.append(&mut acknowledged.into_inner().unwrap());
    }
    assert!(!here.is_empty());
    let server = Server::start(&["--model", &run, "--store", &store]);
    let first = here.first().unwrap();
    assert!(server.keys().is_superset(&here));
    let at: usize = first.rsplit('-').next().unwrap().parse().unwrap();
    let image = server.get(&format!("/v1/gallery/image?key={first}"));
    assert_eq!(image.body, read(&photos[at]));
    let again = server.post(&format!("/v1/gallery?key={first}"), &image.body);
    again.is_problem(409, "not in the gallery yet");
    let removed = server.ask("DELETE", &format!("/v1/gallery?key={first}"), &[], &[]);
    assert_eq!(removed.status, 204);
    server
        .get(&format!("/v1/gallery/image?key={first}"))
        .is_problem(404, first);
    drop(server);
    // Of another model nothing can be compared.
    let reid = model("reid");
    let other = [
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--model",
        &reid,
        "--store",
        &store,
    ];
    refused(folder.path(), &other, &["gallery.clgr", "another --store"]);
    let server = Server::start(&["--model", &run]);
    server
        .post("/v1/gallery?key=a", &read(&photos[0]))
        .is_problem(403, "--store");
}

#[cfg(unix)]
#[test]
fn a_stop_finishes_requests_and_has_its_status() {
    let run = model("run");
    let photo = read(&photos("market/query")[0]);
    for (signal, status) in [("-TERM", 143), ("-INT", 130)] {
        // The wait for a batch keeps the request running when the signal comes.
        let wait = ["--max-wait", "700", "--max-batch", "64"];
        let mut server = Server::start(&[&["--model", &run], &wait[..]].concat());
        std::thread::scope(|scope| {
            let running = scope.spawn(|| server.post("/v1/embed", &photo).lines().len());
            std::thread::sleep(Duration::from_millis(250));
            server.signal(signal);
            assert_eq!(running.join().unwrap(), 1);
        });
        assert_eq!(server.process.wait().unwrap().code(), Some(status));
        assert!(TcpStream::connect(server.address).is_err());
    }
}

#[test]
fn a_full_queue_is_busy_and_clients_that_left_are_dropped() {
    let run = model("run");
    let photos = photos("market/query");
    let limits = [
        "--max-queue",
        "4",
        "--max-images",
        "4",
        "--max-wait",
        "1500",
        "--max-batch",
        "64",
    ];
    let server = Server::start(&[&["--model", &run], &limits[..]].concat());
    std::thread::scope(|scope| {
        let first = scope.spawn(|| server.post_form("/v1/embed", &photos[..4]));
        std::thread::sleep(Duration::from_millis(400));
        let busy = server.post("/v1/embed", &read(&photos[0]));
        busy.is_problem(503, "the queue of 4 images is full");
        assert!(
            busy.head.to_ascii_lowercase().contains("retry-after: 1"),
            "{}",
            busy.head
        );
        assert_eq!(first.join().unwrap().lines().len(), 4);
    });
    // This client does not wait for its answer.
    let image = read(&photos[0]);
    let head = format!(
        "POST /v1/embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n",
        image.len()
    );
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream
        .write_all(&[head.as_bytes(), &image].concat())
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    drop(stream);
    server.post("/v1/embed", &image).lines();
    let text = String::from_utf8(server.get("/metrics").body).unwrap();
    assert!(text.contains("clasp_images_cancelled_total 1\n"), "{text}");
}

#[test]
fn what_does_not_fit_is_said_before_the_address() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs_err::write(&file, "").unwrap();
    let (file, run, attributes) = (
        file.display().to_string(),
        model("run"),
        model("attributes"),
    );
    for (arguments, words) in [
        (
            ["--model", &run, "--store", &file],
            "--store: expected a folder",
        ),
        (
            ["--model", &run, "--runs", &file],
            "--runs: expected a folder",
        ),
        (
            ["--model", &attributes, "--store", "new"],
            "--store: expected a model to search with",
        ),
    ] {
        let all = [&["serve", "--listen", "127.0.0.1:0"][..], &arguments[..]].concat();
        refused(folder.path(), &all, &[words]);
    }
}

#[test]
fn galleries_of_features_and_runs_are_served() {
    let run = model("run");
    let folder = tempfile::tempdir().unwrap();
    let images = drawn().join("unlabeled").display().to_string();
    let embed = [
        "embed",
        &images,
        "--model",
        &run,
        "--out",
        "f.parquet",
        "--prompt",
        "attribute",
    ];
    done(folder.path(), &embed);
    let features = folder.path().join("f.parquet").display().to_string();
    let runs = models().display().to_string();
    let server = Server::start(&["--model", &run, "--gallery", &features, "--runs", &runs]);
    // The searching prompt of a backbone is that of re-identification.
    let (key, photo) = unlabeled(3);
    let found = server.post("/v1/search?top=1", &photo).lines();
    assert_eq!(found[0]["matches"][0]["key"], json!(key));
    assert!(found[0]["matches"][0]["cosine"].as_f64().unwrap() > 0.9999);
    assert!(found[0].get("nobody").is_none());
    let listed = server.get("/v1/runs").json();
    let names: Vec<&str> = { listed.as_array().unwrap().iter() }
        .map(|run| run["name"].as_str().unwrap())
        .collect();
    assert!(
        names.contains(&"run") && names.contains(&"reid"),
        "{names:?}"
    );
    // The server may notice a moment later that the client has closed the connection before.
    let begun = Instant::now();
    let text = loop {
        let text = String::from_utf8(server.get("/metrics").body).unwrap();
        if text.contains("\nclasp_connections 1\n") {
            break text;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{text}");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(text.contains("\nclasp_gallery_images 40\n"), "{text}");
    let log = server.get("/v1/runs/metrics?run=run&after=3").json();
    let steps: Vec<u64> = { log["lines"].as_array().unwrap().iter() }
        .map(|line| line["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [4, 5, 6, 7, 8]);
    server
        .get("/v1/runs/metrics?run=../run")
        .is_problem(404, "expected a run");
    server.get("/v1/labels").is_problem(404, "--labels");
}

#[test]
fn pictures_of_runs_are_served_and_links_are_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let run = model("attributes");
    fs_err::create_dir_all(at("runs/tuned/pictures")).unwrap();
    for file in ["metrics.jsonl", "run.toml", "model.safetensors"] {
        fs_err::copy(Path::new(&run).join(file), at("runs/tuned").join(file)).unwrap();
    }
    fs_err::copy(
        &photos("scenes/images")[0],
        at("runs/tuned/pictures/a b.jpg"),
    )
    .unwrap();
    fs_err::write(at("runs/tuned/pictures/text.png"), "no picture").unwrap();
    fs_err::write(at("runs/tuned/pictures/notes.txt"), "").unwrap();
    fs_err::write(at("secret.png"), "secret").unwrap();
    #[cfg(unix)]
    fs_err::os::unix::fs::symlink(at("secret.png"), at("runs/tuned/pictures/link.png")).unwrap();
    let runs = at("runs").display().to_string();
    let server = Server::start(&["--model", &run, "--runs", &runs]);
    let listed = server.get("/v1/runs/pictures?run=tuned").json();
    assert_eq!(listed, json!(["a b.jpg", "text.png"]));
    let picture = server.get("/v1/runs/picture?run=tuned&name=a%20b.jpg");
    assert!(picture.head.contains("image/jpeg"), "{}", picture.head);
    assert_eq!(picture.body, read(&photos("scenes/images")[0]));
    for name in ["link.png", "..%2F..%2F..%2Fsecret.png", "notes.txt"] {
        server
            .get(&format!("/v1/runs/picture?run=tuned&name={name}"))
            .is_problem(404, "expected a picture of tuned");
    }
    server
        .get("/v1/runs/picture?run=tuned&name=text.png")
        .is_problem(404, "no longer an image");
}

#[test]
fn labels_filter_the_gallery_and_are_corrected() {
    let (run, labels) = (model("run"), model("labels"));
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("labels");
    fs_err::create_dir(&copy).unwrap();
    for entry in fs_err::read_dir(labels).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs_err::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
        }
    }
    let labels = copy.display().to_string();
    let gallery = drawn().join("unlabeled").display().to_string();
    let arguments = ["--model", &run, "--gallery", &gallery, "--labels", &labels];
    let server = Server::start(&arguments);
    let page = server.get("/v1/labels?sort=parts&count=2").json();
    let key = page["labels"][0]["key"].as_str().unwrap().to_owned();
    let confidence = |at: usize| page["labels"][at]["confidence"].as_f64().unwrap();
    assert!(
        confidence(0) <= confidence(1) && page["images"] == 40,
        "{page}"
    );
    let before = server.get(&format!("/v1/labels/image?key={key}")).json();
    let attribute = before["attributes"][0]["attribute"].as_str().unwrap();
    let value = before["attributes"][0]["values"][1].as_str().unwrap();
    let class = before["classes"][1].as_str().unwrap();
    let correction = json!({
        "key": key, "attributes": {attribute: value}, "parts": [{"row": 0, "column": 0, "class": class}],
    });
    let kind = [("Content-Type", "application/json")];
    let send = |body: &Value| {
        server.ask(
            "POST",
            "/v1/labels/image",
            &kind,
            body.to_string().as_bytes(),
        )
    };
    let after = send(&correction).json();
    assert_eq!(
        (&after["parts"][0], &after["attributes"][0]["value"]),
        (&json!(1), &json!(value))
    );
    let filter = format!("filter={attribute}:{value}").replace(' ', "%20");
    let filtered = server.get(&format!("/v1/gallery?{filter}")).json();
    assert!(
        filtered["keys"].as_array().unwrap().contains(&json!(key)),
        "{filtered}"
    );
    let (_, photo) = unlabeled(0);
    for one in server
        .post(&format!("/v1/search?top=40&{filter}"), &photo)
        .lines()[0]["matches"]
        .as_array()
        .unwrap()
    {
        assert!(filtered["keys"].as_array().unwrap().contains(&one["key"]));
    }
    send(&json!({"key": key, "attributes": {attribute: "no such"}})).is_problem(400, "no such");
    send(&json!({"key": "nobody", "clear": true})).is_problem(404, "expected a labeled image");
    send(&json!({"key": key, "part": []})).is_problem(400, "unknown field");
    send(&json!({"key": key})).is_problem(400, "nothing to correct");
    // What another program corrects meanwhile is kept, and a position counts once.
    let other = [
        "label",
        "correct",
        &labels,
        &key,
        "--part",
        "0,0=background",
    ];
    done(folder.path(), &other);
    send(&correction);
    // The folder goes away: the reason is for the log.
    fs_err::rename(&labels, folder.path().join("away")).unwrap();
    send(&correction).is_problem(500, "the log of the server says why");
    assert!(server.said().contains("--labels: "), "{}", server.said());
    fs_err::rename(folder.path().join("away"), &labels).unwrap();
    drop(server);
    // The layer that pre-training reads.
    let stats = done(folder.path(), &["label", "stats", &labels, "--json"]);
    let stats: Value = serde_json::from_str(&stats).unwrap();
    let counts = json!({"images": 1, "attributes": 1, "positions": 1, "unused": []});
    assert_eq!(stats["corrections"], counts);
    let server = Server::start(&arguments);
    let page = server.get("/v1/labels?corrected=yes").json();
    assert_eq!(
        (&page["images"], &page["labels"][0]["key"]),
        (&json!(1), &json!(key))
    );
}
