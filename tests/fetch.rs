//! Downloads from a server on loopback that misbehaves on demand.

use autosam::weights::fetch::fetch;
use autosam::weights::published::PublishedWeights;
use autosam::weights::sha256;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// The server's reaction to one request.
#[derive(Clone, Copy)]
enum Answer {
    /// Honours ranges, but closes the connection after this many bytes of the body.
    Ranges(usize),
    /// Ignores ranges and sends the whole body.
    Whole,
    Status(u16),
}

struct Server {
    url: String,
    /// The range of each request; empty if it had none.
    ranges: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Answers successive requests by `answers`, and all further ones by the last.
    fn start(body: Vec<u8>, answers: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/w.pth", listener.local_addr().unwrap());
        let ranges = Arc::new(Mutex::new(Vec::new()));
        let seen = ranges.clone();
        std::thread::spawn(move || {
            for (i, stream) in listener.incoming().enumerate() {
                let answer = answers[i.min(answers.len() - 1)];
                // A client that closes the connection is not an error.
                let _ = serve(stream.unwrap(), &body, answer, &seen);
            }
        });
        Self { url, ranges }
    }

    fn ranges(&self) -> Vec<String> {
        self.ranges.lock().unwrap().clone()
    }
}

fn serve(
    mut stream: TcpStream,
    body: &[u8],
    answer: Answer,
    seen: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut range = String::new();
    for line in BufReader::new(stream.try_clone()?).lines() {
        let line = line?.to_lowercase();
        if let Some(value) = line.strip_prefix("range: ") {
            range = value.to_owned();
        }
        if line.is_empty() {
            break;
        }
    }
    seen.lock().unwrap().push(range.clone());
    let first: usize = range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap_or(0);
    match answer {
        Answer::Status(code) => {
            write!(stream, "HTTP/1.1 {code} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        }
        Answer::Ranges(most) if !range.is_empty() => {
            let rest = &body[first.min(body.len())..];
            write!(
                stream,
                "HTTP/1.1 206 Partial\r\nContent-Range: bytes {first}-{}/{}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len() - 1,
                body.len(),
                rest.len()
            )?;
            stream.write_all(&rest[..rest.len().min(most)])
        }
        Answer::Ranges(_) | Answer::Whole => {
            let most = if let Answer::Ranges(most) = answer { most } else { body.len() };
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
            stream.write_all(&body[..body.len().min(most)])
        }
    }
}

fn body() -> Vec<u8> {
    (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn published(hash: Option<String>) -> PublishedWeights {
    PublishedWeights {
        name: "w",
        file: "w.pth",
        what: "test",
        source: "example.org",
        url: "https://example.org/w.pth",
        bytes: None,
        sha256: hash.map(|h| &*Box::leak(h.into_boxed_str())),
    }
}

fn good(published: &PublishedWeights, server: &Server, dir: &Path) -> u64 {
    let mut last = 0;
    let path = fetch(published, &server.url, dir, &mut |have, _| last = have).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), body());
    assert!(!dir.join("w.pth.part").exists());
    last
}

fn bad(published: &PublishedWeights, url: &str, dir: &Path) -> String {
    let text = fetch(published, url, dir, &mut |_, _| ()).unwrap_err().to_string();
    assert!(!dir.join("w.pth").exists());
    text
}

#[test]
fn an_interrupted_download_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let published = published(Some(sha256(&body())));
    let server = Server::start(body(), vec![Answer::Ranges(100_000)]);
    assert_eq!(good(&published, &server, dir.path()), 300_000);
    assert_eq!(server.ranges(), ["", "bytes=100000-", "bytes=200000-"]);
    // A complete file is not requested again.
    good(&published, &server, dir.path());
    assert_eq!(server.ranges().len(), 3);
}

#[test]
fn a_partial_file_is_resumed_only_if_a_hash_can_verify_it() {
    for (hash, range) in [(Some(sha256(&body())), "bytes=120000-"), (None, "")] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("w.pth.part"), &body()[..120_000]).unwrap();
        let server = Server::start(body(), vec![Answer::Ranges(usize::MAX)]);
        good(&published(hash), &server, dir.path());
        assert_eq!(server.ranges(), [range]);
    }
}

#[test]
fn without_ranges_the_download_starts_over() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("w.pth.part"), b"anything").unwrap();
    let server = Server::start(body(), vec![Answer::Status(503), Answer::Whole]);
    good(&published(Some(sha256(&body()))), &server, dir.path());
    assert_eq!(server.ranges().len(), 2);
}

#[test]
fn a_wrong_hash_is_reported_and_nothing_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(body(), vec![Answer::Whole]);
    let text = bad(&published(Some("0".repeat(64))), &server.url, dir.path());
    assert!(text.contains(&sha256(&body())) && text.contains(&"0".repeat(64)), "{text}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_file_without_a_published_hash_is_pinned_by_its_first_download() {
    let dir = tempfile::tempdir().unwrap();
    let published = published(None);
    good(&published, &Server::start(body(), vec![Answer::Whole]), dir.path());
    std::fs::remove_file(dir.path().join("w.pth")).unwrap();
    let text = bad(&published, &Server::start(b"another".to_vec(), vec![Answer::Whole]).url, dir.path());
    assert!(text.contains("expected") && text.contains(&sha256(&body())), "{text}");
}

#[test]
fn without_a_network_the_error_says_where_to_put_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = bad(&published(Some("ab".repeat(32))), &format!("http://{closed}/w.pth"), dir.path());
    let place = dir.path().join("w.pth");
    assert!(
        text.contains(&format!("put w.pth (SHA-256 {}) at {}", "ab".repeat(32), place.display())),
        "{text}"
    );
    let gone = Server::start(body(), vec![Answer::Status(404)]);
    let text = bad(&published(None), &gone.url, dir.path());
    assert!(text.contains("answered 404") && text.contains("example.org"), "{text}");
    assert_eq!(gone.ranges().len(), 1, "a missing file is requested only once");
}

#[test]
fn a_file_placed_by_hand_is_verified() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("w.pth");
    std::fs::write(&place, b"put here by hand").unwrap();
    let text = fetch(&published(Some(sha256(&body()))), "http://127.0.0.1:9/", dir.path(), &mut |_, _| ())
        .unwrap_err()
        .to_string();
    assert!(text.contains("expected") && text.contains("remove the file"), "{text}");
    fetch(&published(Some(sha256(b"put here by hand"))), "http://127.0.0.1:9/", dir.path(), &mut |_, _| ())
        .unwrap();
}
