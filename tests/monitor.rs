//! Access to the monitor's page over a socket, on each of its routes.

use autosam::monitor::page::{self, Board, Pointing};
use autosam::serve::Server;
use autosam::serve::access::{Access, Token};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SECRET: &str = "a-token-of-this-test-0123";
const ROUTES: [&str; 6] = ["/", "/pointer.js", "/page.js", "/page.css", "/state.json", "/live.mjpeg"];

/// A page on which one image is shown repeatedly, as by a pipeline.
struct Page {
    server: Server,
    stop: Arc<AtomicBool>,
    pipeline: Option<std::thread::JoinHandle<()>>,
    /// The received prompts; at most two are queued.
    prompts: Arc<Mutex<Vec<Pointing>>>,
}

impl Page {
    fn new(address: [u8; 4], access: Access) -> Self {
        let board = Arc::new(Board::default());
        let prompts = Arc::new(Mutex::new(Vec::new()));
        let queue = prompts.clone();
        let point = move |pointing| {
            let mut queue = queue.lock().unwrap();
            let free = queue.len() < 2;
            free.then(|| queue.push(pointing)).is_some()
        };
        let server = page::serve((address, 0).into(), access, board.clone(), point).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let ends = stop.clone();
        let pipeline = std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                board.show(b"a patient's video");
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self { server, stop, pipeline: Some(pipeline), prompts }
    }

    /// The page's host and port for a browser on this machine.
    fn host(&self) -> String {
        format!("127.0.0.1:{}", self.server.address().port())
    }

    /// The answer's header and body up to the end of the connection; a live stream is read up to its first frame.
    fn ask(&self, first: &str, headers: &[&str]) -> String {
        let mut stream = TcpStream::connect(self.host()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let head = format!("{first} HTTP/1.1\r\n{}\r\n\r\n", headers.join("\r\n"));
        stream.write_all(head.as_bytes()).unwrap();
        let (mut reader, mut text) = (BufReader::new(stream), String::new());
        while reader.read_line(&mut text).unwrap() > 0 && !text.contains("a patient's video") {}
        text
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.pipeline.take().unwrap().join().unwrap();
    }
}

/// The token, read from a file as with `--token-file`.
fn token() -> Token {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, SECRET).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    Token::read(&file).unwrap()
}

fn guarded(token: Option<Token>) -> Access {
    Access::Guarded { token, names: Vec::new() }
}

#[test]
fn beyond_loopback_every_route_requires_the_token() {
    let page = Page::new([0, 0, 0, 0], guarded(Some(token())));
    let host = format!("Host: {}", page.host());
    let refused = |first: &str, headers: &[&str], status: &str| {
        let answer = page.ask(first, headers);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{first} {headers:?}: {answer}");
        for secret in ["patient", SECRET, "Set-Cookie", "<html", "frames"] {
            assert!(!answer.contains(secret), "{first} {headers:?}: {answer}");
        }
    };
    let opened = page.ask(&format!("GET /?token={SECRET}"), &[&host]);
    assert!(opened.starts_with("HTTP/1.1 200") && opened.contains("<html"), "{opened}");
    let cookie = opened.lines().find_map(|l| l.strip_prefix("Set-Cookie: ")).unwrap();
    assert!(cookie.ends_with("; HttpOnly; SameSite=Strict"), "{cookie}");
    let cookie = format!("Cookie: {}", cookie.split(';').next().unwrap());

    for route in ROUTES {
        let (get, post) = (format!("GET {route}"), format!("POST {route}"));
        let socket = ["Connection: Upgrade", "Upgrade: websocket"];
        refused(&get, &[&host], "403");
        refused(&get, &[&host, "Cookie: autosam=1"], "403");
        refused(&get, &[&host, &cookie.replace(SECRET, "another-token-0123456789")], "403");
        refused(&format!("{get}?token=another-token-0123456789"), &[&host], "403");
        refused(&get, &[&[host.as_str()], &socket[..]].concat(), "403");
        refused(&get, &[&host, &cookie, "Origin: https://evil.example"], "403");
        refused(&get, &["Host: evil.example", &cookie], "421");
        refused(&post, &[&host, &cookie], "403");
        refused(&post, &[&host, &cookie, "Origin: https://evil.example"], "403");
        refused(&post, &["Host: evil.example", "Origin: http://evil.example", &cookie], "421");
        refused(&post, &[&host, &cookie, &format!("Origin: http://{}", page.host())], "405");

        let let_in = page.ask(&get, &[&host, &cookie]);
        assert!(let_in.starts_with("HTTP/1.1 200") && !let_in.contains(SECRET), "{get}: {let_in}");
        assert_eq!(let_in.contains("a patient's video"), route == "/live.mjpeg", "{get}: {let_in}");
    }
}

#[test]
fn on_loopback_requests_from_other_pages_are_refused() {
    let page = Page::new([127, 0, 0, 1], guarded(None));
    let host = format!("Host: {}", page.host());
    for route in ROUTES {
        let status = |method: &str, headers: &[&str]| {
            let mut stream = TcpStream::connect(page.host()).unwrap();
            let head = format!("{method} {route} HTTP/1.1\r\n{}\r\n\r\n", headers.join("\r\n"));
            stream.write_all(head.as_bytes()).unwrap();
            let mut start = [0; 12];
            stream.read_exact(&mut start).unwrap();
            String::from_utf8(start[9..].to_vec()).unwrap()
        };
        let ours = format!("Origin: http://{}", page.host());
        assert_eq!(status("GET", &[&host]), "200", "{route}");
        assert_eq!(status("POST", &[&host, &ours]), "405", "{route}");
        assert_eq!(status("POST", &[&host]), "403", "{route}");
        for origin in ["Origin: https://evil.example", "Origin: null", "Origin: http://127.0.0.1:1"] {
            assert_eq!(status("GET", &[&host, origin]), "403", "{route} {origin}");
            assert_eq!(status("POST", &[&host, origin]), "403", "{route} {origin}");
        }
        // A foreign host name that resolves to this machine.
        assert_eq!(status("GET", &["Host: evil.example:80"]), "421", "{route}");
        assert_eq!(status("GET", &["Host: 192.168.7.5:80"]), "421", "{route}");
    }
}

#[test]
fn prompts_are_accepted_only_from_the_page_itself_and_are_validated() {
    let page = Page::new([0, 0, 0, 0], guarded(Some(token())));
    let (host, origin) = (format!("Host: {}", page.host()), format!("Origin: http://{}", page.host()));
    let opened = page.ask(&format!("GET /?token={SECRET}"), &[&host]);
    let cookie = opened.lines().find_map(|l| l.strip_prefix("Set-Cookie: ")).unwrap();
    let cookie = format!("Cookie: {}", cookie.split(';').next().unwrap());
    let answers = |first: &str, headers: &[&str], status: &str| {
        let answer = page.ask(first, headers);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{first} {headers:?}: {answer}");
    };
    let click = "POST /prompt?point=0.5,0.25";
    answers(click, &[&host, &origin], "403");
    answers(click, &[&host, &cookie], "403");
    answers(click, &[&host, &cookie, "Origin: https://evil.example"], "403");
    answers("GET /prompt?point=0.5,0.25", &[&host, &cookie], "404");
    answers("POST /prompt?point=2,0.25", &[&host, &cookie, &origin], "400");
    assert!(page.prompts.lock().unwrap().is_empty(), "a refused request must not become a prompt");
    answers(click, &[&host, &cookie, &origin], "200");
    answers("POST /prompt?clear", &[&host, &cookie, &origin], "200");
    answers(click, &[&host, &cookie, &origin], "409");
    let point = Pointing::Point { x: 0.5, y: 0.25, foreground: true };
    assert_eq!(*page.prompts.lock().unwrap(), [point, Pointing::Clear]);
}
