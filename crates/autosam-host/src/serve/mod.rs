//! A small HTTP server for a monitor's page and for metrics: GET, and POST without a body, [`access`] checked before anything is
//! answered, a bounded number of clients, deadlines on every read and write; paths of requests never reach the disk.

pub mod access;
pub mod metrics;

use crate::{Error, Result};
use access::Access;
use std::borrow::Cow;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Maximum number of clients; further ones get 503.
pub const MOST_CLIENTS: usize = 16;
/// Time limit for a request's head.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// Time limit for each write; a slower client is disconnected.
const WRITE_TIME: Duration = Duration::from_secs(5);
const MOST_HEAD: usize = 8 << 10;

/// Only content from this server is loaded or run, nothing is cached, and other sites cannot embed it.
const HEADERS: &str = "Content-Security-Policy: default-src 'none'; img-src 'self'; connect-src 'self'; script-src 'self'; \
                       style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n\
                       X-Content-Type-Options: nosniff\r\n\
                       X-Frame-Options: DENY\r\n\
                       Referrer-Policy: no-referrer\r\n\
                       Cross-Origin-Resource-Policy: same-origin\r\n\
                       Cross-Origin-Opener-Policy: same-origin\r\n\
                       Cache-Control: no-store\r\n\
                       Connection: close\r\n";

/// Writes a streamed body until it ends or the client disconnects.
pub type Writing = Box<dyn FnOnce(&mut Client) -> std::io::Result<()> + Send>;

/// How a request asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    /// Asks for a change. Browsers send it for our own pages only ([`access`]).
    Post,
}

/// A request that was admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    pub method: Method,
    pub path: &'a str,
    /// What follows `?`, as it was sent; empty if nothing does.
    pub query: &'a str,
}

/// The answer to a request.
pub enum Answer {
    /// A whole document: content type and body.
    Document(&'static str, Cow<'static, [u8]>),
    /// A streamed document: content type, and the function that writes the body.
    Stream(&'static str, Writing),
    NotFound,
    /// A path that is not changed by POST.
    GetOnly,
    /// The change is made; nothing is returned.
    Done,
    /// The request has a mistake: 400 and why.
    Mistaken(Cow<'static, str>),
    /// The change cannot be made at present: 409 and why.
    Refused(Cow<'static, str>),
}

/// The output of a [`Answer::Stream`].
pub struct Client<'a> {
    stream: &'a TcpStream,
    stop: &'a AtomicBool,
}

impl Client<'_> {
    /// Whether the server is ending.
    pub fn ended(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl Write for Client<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stream.flush()
    }
}

/// A server with its own threads. Dropping it ends them.
pub struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `answer(request)` at `address` to clients that `access` admits; port 0 chooses a free one.
    ///
    /// # Errors
    /// If the address cannot be used.
    pub fn start(
        address: SocketAddr,
        access: Access,
        answer: impl Fn(Request) -> Answer + Send + Sync + 'static,
    ) -> Result<Self> {
        let failed = |e| {
            Error::device(format!("cannot serve at {address}: {e}; does another program use this address?"))
        };
        let listener = TcpListener::bind(address).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let stop = Arc::new(AtomicBool::new(false));
        let ends = stop.clone();
        let thread = std::thread::Builder::new()
            .name("autosam-http".into())
            .spawn(move || accept(&listener, &ends, &Arc::new(Site { address, access, answer })))
            .map_err(failed)?;
        Ok(Self { address, stop, thread: Some(thread) })
    }

    /// The server's address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let to = match self.address.ip() {
            ip if !ip.is_unspecified() => ip,
            IpAddr::V4(_) => IpAddr::from([127, 0, 0, 1]),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        let woken =
            TcpStream::connect_timeout(&(to, self.address.port()).into(), Duration::from_secs(1)).is_ok();
        if let (true, Some(thread)) = (woken, self.thread.take()) {
            // It has nothing to report.
            let _ = thread.join();
        }
    }
}

/// What is served, where and to whom.
struct Site<H> {
    address: SocketAddr,
    access: Access,
    answer: H,
}

fn accept<H>(listener: &TcpListener, stop: &Arc<AtomicBool>, site: &Arc<Site<H>>)
where
    H: Fn(Request) -> Answer + Send + Sync + 'static,
{
    let clients = Arc::new(AtomicUsize::new(0));
    loop {
        let accepted = listener.accept();
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let Ok((stream, _)) = accepted else {
            // For example, out of file descriptors; this may be temporary.
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        let timed = stream.set_write_timeout(Some(WRITE_TIME)).and_then(|()| stream.set_nodelay(true));
        if timed.is_err() {
            continue;
        }
        if clients.fetch_add(1, Ordering::AcqRel) >= MOST_CLIENTS {
            clients.fetch_sub(1, Ordering::AcqRel);
            // The client may have disconnected; the error cannot be delivered.
            let _ = write_plain(&stream, "503 Service Unavailable", "too many clients\n");
            continue;
        }
        let slot = Slot(clients.clone());
        let (site, stop) = (site.clone(), stop.clone());
        let spawned = std::thread::Builder::new().name("autosam-client".into()).spawn(move || {
            let _slot = slot;
            if let Err(e) = serve(&stream, &site, &stop) {
                tracing::debug!("a client went: {e}");
            }
            linger(&stream);
        });
        if let Err(e) = spawned {
            tracing::warn!("cannot start a thread for a client: {e}");
        }
    }
}

/// A client's slot; released when dropped, also by a panic.
struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn serve<H>(stream: &TcpStream, site: &Site<H>, stop: &AtomicBool) -> std::io::Result<()>
where
    H: Fn(Request) -> Answer,
{
    let Some(head) = read_head(stream)? else {
        return write_plain(stream, "400 Bad Request", "not a request\n");
    };
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let whole = matches!(request.parse(&head), Ok(httparse::Status::Complete(_)));
    let (true, Some(method), Some(target)) = (whole, request.method, request.path) else {
        return write_plain(stream, "400 Bad Request", "not a request\n");
    };
    let cookie = match site.access.check(site.address, &request) {
        Ok(cookie) => cookie,
        Err((status, text)) => return write_plain(stream, status, text),
    };
    let method = match method {
        "GET" => Method::Get,
        "POST" => Method::Post,
        _ => return write_plain(stream, "405 Method Not Allowed\r\nAllow: GET, POST", "GET or POST only\n"),
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let ok = cookie.map_or_else(|| "200 OK".to_owned(), |cookie| format!("200 OK\r\nSet-Cookie: {cookie}"));
    match (site.answer)(Request { method, path, query }) {
        Answer::Document(kind, body) => write(stream, &ok, kind, &body),
        Answer::NotFound => write_plain(stream, "404 Not Found", "nothing here\n"),
        Answer::GetOnly => write_plain(stream, "405 Method Not Allowed\r\nAllow: GET", "GET only\n"),
        Answer::Done => write_plain(stream, &ok, ""),
        Answer::Mistaken(why) => write_plain(stream, "400 Bad Request", &why),
        Answer::Refused(why) => write_plain(stream, "409 Conflict", &why),
        Answer::Stream(kind, body) => {
            let mut client = Client { stream, stop };
            write!(client, "HTTP/1.1 {ok}\r\n{HEADERS}Content-Type: {kind}\r\n\r\n")?;
            body(&mut client)
        }
    }
}

/// Reads the rest of the request before closing; unread data would reset the connection before the client gets the answer.
fn linger(mut stream: &TcpStream) {
    let timed = stream.set_read_timeout(Some(Duration::from_millis(200)));
    if timed.and_then(|()| stream.shutdown(Shutdown::Write)).is_err() {
        return;
    }
    let mut bytes = [0; 4096];
    for _ in 0..16 {
        if !matches!(stream.read(&mut bytes), Ok(1..)) {
            return;
        }
    }
}

/// The request's head; `None` if it is too long or does not arrive in time.
fn read_head(mut stream: &TcpStream) -> std::io::Result<Option<Vec<u8>>> {
    let end = Instant::now() + REQUEST_TIME;
    let mut head = Vec::new();
    let mut bytes = [0; 1024];
    loop {
        let Some(rest) = end.checked_duration_since(Instant::now()).filter(|r| !r.is_zero()) else {
            return Ok(None);
        };
        stream.set_read_timeout(Some(rest))?;
        match stream.read(&mut bytes) {
            Ok(0) => return Ok(None),
            Ok(n) => head.extend_from_slice(&bytes[..n]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(None),
            Err(e) => return Err(e),
        }
        if head.windows(4).any(|w| w == b"\r\n\r\n") {
            return Ok(Some(head));
        }
        if head.len() > MOST_HEAD {
            return Ok(None);
        }
    }
}

fn write_plain(stream: &TcpStream, status: &str, text: &str) -> std::io::Result<()> {
    write(stream, status, "text/plain; charset=utf-8", text.as_bytes())
}

fn write(mut stream: &TcpStream, status: &str, kind: &str, body: &[u8]) -> std::io::Result<()> {
    let length = body.len();
    let mut bytes =
        format!("HTTP/1.1 {status}\r\n{HEADERS}Content-Type: {kind}\r\nContent-Length: {length}\r\n\r\n")
            .into_bytes();
    bytes.extend_from_slice(body);
    stream.write_all(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> Server {
        let answer = |request: Request| match request.path {
            "/change" if request.method == Method::Post => match request.query {
                "now" => Answer::Done,
                "later" => Answer::Refused("not yet\n".into()),
                _ => Answer::Mistaken("now or later\n".into()),
            },
            _ if request.method == Method::Post => Answer::GetOnly,
            "/" => Answer::Document("text/html; charset=utf-8", b"<p>hello".as_slice().into()),
            "/stream" => Answer::Stream(
                "text/plain",
                Box::new(|client| {
                    while !client.ended() {
                        client.write_all(b"tick\n")?;
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    Ok(())
                }),
            ),
            _ => Answer::NotFound,
        };
        let access = Access::Guarded { token: None, names: Vec::new() };
        Server::start(([127, 0, 0, 1], 0).into(), access, answer).unwrap()
    }

    fn ask(server: &Server, request: &str) -> String {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn documents_are_given_with_strict_headers() {
        let server = server();
        let answer = ask(&server, "GET /?x=1 HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n<p>hello"),
            "{answer}"
        );
        for header in ["default-src 'none'", "nosniff", "no-store", "Content-Length: 8", "same-origin"] {
            assert!(answer.contains(header), "{header}: {answer}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        let server = server();
        let host = "Host: 127.0.0.1:1\r\n\r\n";
        let starts = |request: &str, status: &str| {
            let answer = ask(&server, request);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
            assert!(answer.contains("Content-Security-Policy"), "{answer}");
        };
        starts(&format!("GET /../../etc/passwd HTTP/1.1\r\n{host}"), "404");
        let ours = format!("Origin: http://127.0.0.1:1\r\n{host}");
        for method in ["POST", "PUT", "DELETE", "HEAD", "OPTIONS"] {
            starts(&format!("{method} / HTTP/1.1\r\n{ours}"), "405");
            starts(&format!("{method} / HTTP/1.1\r\nOrigin: https://evil.example\r\n{host}"), "403");
        }
        for (query, status) in [("?now", "200"), ("?later", "409"), ("", "400"), ("?now?", "400")] {
            starts(&format!("POST /change{query} HTTP/1.1\r\n{ours}"), status);
            starts(&format!("POST /change{query} HTTP/1.1\r\n{host}"), "403");
        }
        starts("nonsense\r\n\r\n", "400");
        starts("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", "421");
        starts("GET / HTTP/1.1\r\n\r\n", "400");
        starts(&format!("GET / HTTP/1.1\r\nX: {}\r\n{host}", "y".repeat(2 * MOST_HEAD)), "400");
    }

    #[test]
    fn one_client_too_many_is_refused_with_the_reason_and_slots_are_freed() {
        let server = server();
        let request = b"GET /stream HTTP/1.1\r\nHost: [::1]\r\n\r\n";
        let mut held = Vec::new();
        for _ in 0..MOST_CLIENTS {
            let mut stream = TcpStream::connect(server.address()).unwrap();
            stream.write_all(request).unwrap();
            let mut first = [0; 12];
            stream.read_exact(&mut first).unwrap();
            assert_eq!(&first, b"HTTP/1.1 200");
            held.push(stream);
        }
        let get = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
        assert!(ask(&server, "").starts_with("HTTP/1.1 503"));
        held.clear();
        let begin = Instant::now();
        loop {
            let mut stream = TcpStream::connect(server.address()).unwrap();
            let mut answer = String::new();
            // A refusal may close the connection while the request is on its way.
            let sent = stream.write_all(get.as_bytes()).and_then(|()| stream.read_to_string(&mut answer));
            if sent.is_ok() && answer.starts_with("HTTP/1.1 200") {
                break;
            }
            assert!(begin.elapsed() < Duration::from_secs(20), "{answer}");
            std::thread::sleep(Duration::from_millis(10));
        }
        let address = server.address();
        drop(server);
        assert!(TcpStream::connect(address).is_err(), "it serves on");
    }
}
