//! A hub on this machine, for tests: what it answers to which path, and what it was asked.

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A hub of one thread.
pub struct Server {
    /// Where it is, with scheme and port.
    pub address: String,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// The requests so far.
    pub fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }
}

/// A request that came.
#[derive(Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    headers: BTreeMap<String, String>,
}

impl Request {
    /// A header by its name in lower case.
    pub fn header(&self, name: &str) -> Option<String> {
        self.headers.get(name).cloned()
    }

    fn read(stream: &mut impl BufRead) -> Self {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, path) = (words.next(), words.next());
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        Self {
            method: method.unwrap_or_default(),
            path: path.unwrap_or_default(),
            headers,
        }
    }
}

#[derive(Clone)]
pub enum Answer {
    File(Vec<u8>),
    Redirect(String),
    /// Less than the length that it claims.
    Cut(Vec<u8>),
    /// Then nothing for seconds.
    Stall(Vec<u8>),
    StallTagged(Vec<u8>, String),
    /// With the SHA-256 as a tag.
    Tagged(Vec<u8>, String),
    /// Breaks off after so many bytes of an answer, and honors ranges or not.
    Broken {
        body: Vec<u8>,
        tag: String,
        after: usize,
        ranges: bool,
    },
    /// Claims to be larger than any file.
    Huge,
    Status(u16),
    /// A status with the hub's word for it.
    Refused(u16, String),
}

/// Head without lengths, body, and the length that is claimed.
type Reply = (String, Vec<u8>, u64);

fn reply(answer: &Answer, request: &Request) -> Reply {
    let whole = |head: String, body: &[u8], more: u64| {
        let claimed = body.len() as u64 + more;
        (head, body.to_vec(), claimed)
    };
    let ok = "200 OK".to_owned();
    let tagged = |tag: &str| format!("200 OK\r\nX-Repo-Commit: abc123\r\nX-Linked-ETag: \"{tag}\"");
    match answer {
        Answer::File(body) => whole("200 OK\r\nETag: \"tag\"".to_owned(), body, 0),
        Answer::Cut(body) | Answer::Stall(body) => whole(ok, body, 100),
        Answer::StallTagged(body, tag) => whole(tagged(tag), body, 100),
        Answer::Tagged(body, tag) => whole(tagged(tag), body, 0),
        Answer::Broken {
            body,
            tag,
            after,
            ranges,
        } => {
            let range = request.header("range").filter(|_| *ranges);
            let range = range.and_then(|range| {
                let range = range.strip_prefix("bytes=")?.strip_suffix('-')?.to_owned();
                range.parse::<usize>().ok()
            });
            let Some(from) = range else {
                let end = body.len().min(*after);
                return (tagged(tag), body[..end].to_vec(), body.len() as u64);
            };
            if from >= body.len() {
                return whole("416 Range Not Satisfiable".to_owned(), b"", 0);
            }
            let head = tagged(tag).replace("200 OK", "206 Partial Content");
            let (last, size) = (body.len() - 1, body.len());
            let head = format!("{head}\r\nContent-Range: bytes {from}-{last}/{size}");
            let end = body.len().min(from + after);
            (head, body[from..end].to_vec(), (size - from) as u64)
        }
        Answer::Huge => (ok, vec![], 99_999_999_999),
        Answer::Redirect(to) => {
            let tag = request.path.replace('/', "_");
            let tag = tag.trim_start_matches('_');
            let head = format!(
                "302 Found\r\nLocation: {to}\r\nX-Repo-Commit: abc123\r\nX-Linked-ETag: \"{tag}\""
            );
            whole(head, b"", 0)
        }
        Answer::Status(status) => whole(format!("{status} No"), b"", 0),
        Answer::Refused(status, code) => {
            whole(format!("{status} No\r\nX-Error-Code: {code}"), b"", 0)
        }
    }
}

/// Answers the requests of one connection.
fn converse<S: Read + Write>(
    stream: S,
    answers: &BTreeMap<String, Answer>,
    asked: &Mutex<Vec<Request>>,
) {
    let mut stream = BufReader::new(stream);
    let mut request = Request::read(&mut stream);
    asked.lock().unwrap().push(request.clone());
    if request.method == "CONNECT" {
        // A proxy whose every server is this one.
        let accepted = stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        accepted.unwrap();
        request = Request::read(&mut stream);
        asked.lock().unwrap().push(request.clone());
    }
    let answer = answers.get(&request.path);
    let absent = || ("404 Not Found".to_owned(), vec![], 0);
    let (head, body, claimed) = answer.map_or_else(absent, |answer| reply(answer, &request));
    let head = format!("HTTP/1.1 {head}\r\nContent-Length: {claimed}\r\nConnection: close\r\n\r\n");
    let stream = stream.get_mut();
    // A client that has seen enough may have gone.
    let _ = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(&body))
        .and_then(|()| stream.flush());
    if matches!(answer, Some(Answer::Stall(_) | Answer::StallTagged(..))) {
        std::thread::sleep(Duration::from_secs(5));
    }
}

fn listen(
    scheme: &str,
    host: &str,
    answers: BTreeMap<String, Answer>,
    connection: impl Fn(TcpStream, &BTreeMap<String, Answer>, &Mutex<Vec<Request>>) + Send + 'static,
) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            connection(stream.unwrap(), &answers, &log);
        }
    });
    let address = format!("{scheme}://{host}:{port}");
    Server { address, asked }
}

/// Without encryption.
pub fn serve(answers: BTreeMap<String, Answer>) -> Server {
    listen("http", "127.0.0.1", answers, |stream, answers, asked| {
        converse(stream, answers, asked);
    })
}

/// By TLS, as `localhost`, with a new certificate; also that certificate, in PEM.
pub fn secure(answers: BTreeMap<String, Answer>) -> (Server, String) {
    let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(signed.signing_key.serialize_der());
    let chain = vec![signed.cert.der().clone()];
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::Pkcs8(key))
        .unwrap();
    let config = Arc::new(config);
    let server = listen(
        "https",
        "localhost",
        answers,
        move |stream, answers, asked| {
            let mut stream =
                StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream);
            // A client that does not trust the certificate goes away here.
            if stream.conn.complete_io(&mut stream.sock).is_ok() {
                converse(stream, answers, asked);
            }
        },
    );
    (server, signed.cert.pem())
}
