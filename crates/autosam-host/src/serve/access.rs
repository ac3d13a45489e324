//! Access control of a [`Server`](super::Server): an access token for patients' video, and no requests that another web
//! site sends through a viewer's browser.

use crate::{Error, Result};
use httparse::{Header, Request};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use subtle::ConstantTimeEq;

/// Random bytes of a generated token.
const RANDOM_BYTES: usize = 16;
/// Shortest and longest token in a file.
const FILE_LENGTHS: std::ops::RangeInclusive<usize> = 16..=256;
/// The part of the link that has the token.
const PARAMETER: &str = "token=";

/// A secret that opens the page. Not shown by `Debug`.
#[derive(Clone)]
pub struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// A new token of 128 random bits.
    ///
    /// # Errors
    /// If the system has no random bytes.
    pub fn random() -> Result<Self> {
        let mut bytes = [0; RANDOM_BYTES];
        getrandom::fill(&mut bytes)
            .map_err(|e| Error::device(format!("cannot get random bytes for a token: {e}")))?;
        Ok(Self(bytes.iter().map(|b| format!("{b:02x}")).collect()))
    }

    /// The token in `file`, without the white space around it.
    ///
    /// # Errors
    /// For a file that cannot be read, that every user can read, or that has no token of 16 to 256 letters, digits, `-`, `.`,
    /// `_` and `~`.
    pub fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).map_err(|e| Error::io(file, e))?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            let mode = std::fs::metadata(file).map_err(|e| Error::io(file, e))?.mode();
            if mode & 0o007 != 0 {
                return Err(Error::data(
                    file,
                    "every user can read this token; protect it with chmod 600 FILE",
                ));
            }
        }
        let token = text.trim();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
        if !FILE_LENGTHS.contains(&token.len()) || !token.chars().all(plain) {
            return Err(Error::data(
                file,
                "expected a token of 16 to 256 letters, digits, -, ., _ and ~; make one with openssl rand -hex 16",
            ));
        }
        Ok(Self(token.to_owned()))
    }

    /// Whether `text` is this token, in a time that does not depend on where they differ.
    fn is(&self, text: &str) -> bool {
        self.0.as_bytes().ct_eq(text.as_bytes()).into()
    }

    /// `link` with the token, which grants access.
    pub fn in_link(&self, link: &str) -> String {
        format!("{link}?{PARAMETER}{}", self.0)
    }
}

/// Access rules.
#[derive(Debug, Clone)]
pub enum Access {
    /// Everyone who can reach the address; for content without patients' images.
    Open,
    /// Only clients with the token, if one is set; requests that another site sends through a viewer's browser are rejected.
    Guarded {
        token: Option<Token>,
        /// Host names of the server in addition to its addresses and this machine's own name.
        names: Vec<String>,
    },
}

/// Why a request is rejected: status line and text.
pub(super) type Refusal = (&'static str, &'static str);

const AMBIGUOUS: Refusal = ("400 Bad Request", "expected exactly one Host header\n");
const OTHER_NAME: Refusal = (
    "421 Misdirected Request",
    "unknown host name: open the page by this machine's address, or start the server with this name\n",
);
const OTHER_ORIGIN: Refusal = ("403 Forbidden", "refused: another site's request\n");
const NO_TOKEN: Refusal =
    ("403 Forbidden", "no access: open the link with the token that was printed at the server's start\n");

impl Access {
    /// Admits `request` to `address` or returns why not. `Some` is a `Set-Cookie` value for the answer.
    pub(super) fn check(
        &self,
        address: SocketAddr,
        request: &Request,
    ) -> std::result::Result<Option<String>, Refusal> {
        let host = only(request.headers, "host").ok_or(AMBIGUOUS);
        match self {
            // A web site that uses DNS rebinding must not read metrics either.
            Self::Open if address.ip().is_loopback() => {
                named(host?, address, &[]).then_some(None).ok_or(OTHER_NAME)
            }
            Self::Open => Ok(None),
            Self::Guarded { token, names } => {
                let host = host?;
                if !named(host, address, names) {
                    return Err(OTHER_NAME);
                }
                if from_elsewhere(request, host) {
                    return Err(OTHER_ORIGIN);
                }
                token.as_ref().map_or(Ok(None), |token| admitted(token, address, request))
            }
        }
    }
}

/// Whether link or cookie have the token; with the link's, the cookie that takes its place.
fn admitted(
    token: &Token,
    address: SocketAddr,
    request: &Request,
) -> std::result::Result<Option<String>, Refusal> {
    // Browsers share cookies between the ports of a machine: each server has a name of its own.
    let name = format!("autosam-{}", address.port());
    let (path, query) = request.path.and_then(|p| p.split_once('?')).unwrap_or_default();
    let given = query.split('&').find_map(|part| part.strip_prefix(PARAMETER));
    if let ("/", Some(given)) = (path, given) {
        let cookie = || format!("{name}={}; Path=/; HttpOnly; SameSite=Strict", token.0);
        return token.is(given).then(|| Some(cookie())).ok_or(NO_TOKEN);
    }
    let cookies = values(request.headers, "cookie").flat_map(|line| line.split(';'));
    // Each that is there under this name, so that one planted by another server on this machine locks nobody out.
    let mut mine = cookies.filter_map(|c| c.trim().split_once('=')).filter(|(n, _)| *n == name);
    mine.any(|(_, value)| token.is(value)).then_some(None).ok_or(NO_TOKEN)
}

/// Whether a browser sent this for a page that is not ours, or may have: what is not a GET must name our own origin.
fn from_elsewhere(request: &Request, host: &str) -> bool {
    let ours = |origin: &str| {
        let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        authority.is_some_and(|a| a.eq_ignore_ascii_case(host))
    };
    let mut origins = values(request.headers, "origin").peekable();
    if origins.peek().is_some() {
        return !origins.all(ours);
    }
    let says = |name, value: &str| values(request.headers, name).any(|v| v.eq_ignore_ascii_case(value));
    // An image or script of another page has no Origin, but newer browsers say where it comes from; a link may be followed.
    let embedded = (says("sec-fetch-site", "cross-site") || says("sec-fetch-site", "same-site"))
        && !says("sec-fetch-mode", "navigate");
    request.method != Some("GET") || embedded
}

/// Whether `host`, with or without a port, is a name that this server goes by: an address (of loopback, if the server's own
/// is), `localhost`, and outside loopback this machine's name; or one of `names`. A name that somebody else points here is
/// none of them.
fn named(host: &str, address: SocketAddr, names: &[String]) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => name,
        _ => host,
    };
    let loopback = address.ip().is_loopback();
    let plain = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    if let Ok(ip) = plain.parse::<IpAddr>() {
        return !loopback || ip.is_loopback();
    }
    let known = |known: &str| name.eq_ignore_ascii_case(known);
    let own = || {
        let own = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let own = own.trim();
        !own.is_empty() && (known(own) || known(&format!("{own}.local")))
    };
    known("localhost") || names.iter().any(|n| known(n)) || (!loopback && own())
}

/// The values of all headers of this name that are text; of others an empty one.
fn values<'a>(headers: &'a [Header], name: &'a str) -> impl Iterator<Item = &'a str> {
    headers
        .iter()
        .filter(move |h| h.name.eq_ignore_ascii_case(name))
        .map(|h| std::str::from_utf8(h.value).unwrap_or_default())
}

/// The value of a header that is there once.
fn only<'a>(headers: &'a [Header], name: &'a str) -> Option<&'a str> {
    let mut all = values(headers, name);
    all.next().filter(|_| all.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: &str = "127.0.0.1:8080";
    const EVERYWHERE: &str = "0.0.0.0:8080";
    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    /// The status that a request is refused with; 200 if it is let in.
    fn status(access: &Access, address: &str, first: &str, headers: &[&str]) -> String {
        answer(access, address, first, headers)
            .map_or_else(|(status, _)| status[..3].to_owned(), |_| "200".to_owned())
    }

    fn answer(
        access: &Access,
        address: &str,
        first: &str,
        headers: &[&str],
    ) -> std::result::Result<Option<String>, Refusal> {
        let head = format!("{first} HTTP/1.1\r\n{}\r\n\r\n", headers.join("\r\n"));
        let mut space = [httparse::EMPTY_HEADER; 16];
        let mut request = Request::new(&mut space);
        assert!(request.parse(head.as_bytes()).unwrap().is_complete(), "{head}");
        access.check(address.parse().unwrap(), &request)
    }

    fn guarded(token: bool) -> Access {
        Access::Guarded {
            token: token.then(|| Token(SECRET.into())),
            names: vec!["or3.clinic.example".into()],
        }
    }

    const ROUTES: [&str; 6] = ["/", "/page.js", "/page.css", "/state.json", "/live.mjpeg", "/no-such-page"];
    const CAMERA: &str = "Host: 192.168.7.5:8080";

    #[test]
    fn without_the_token_nothing_is_given() {
        let (access, cookie) = (guarded(true), format!("Cookie: a=b; autosam-8080={SECRET}; c=d"));
        for route in ROUTES {
            let get = format!("GET {route}");
            let got = |headers: &[&str]| status(&access, EVERYWHERE, &get, headers);
            assert_eq!(got(&[CAMERA]), "403", "{route}");
            assert_eq!(got(&[CAMERA, &cookie]), "200", "{route}");
            for wrong in ["", "x", &SECRET[1..], &SECRET.to_uppercase(), &format!("{SECRET}0")] {
                assert_eq!(
                    got(&[CAMERA, &format!("Cookie: autosam-8080={wrong}")]),
                    "403",
                    "{route} {wrong}"
                );
                let link = format!("GET {route}?token={wrong}");
                assert_eq!(status(&access, EVERYWHERE, &link, &[CAMERA]), "403", "{link}");
            }
            // Another server's cookie on this machine; a broken one.
            assert_eq!(got(&[CAMERA, &format!("Cookie: autosam-8081={SECRET}")]), "403");
            assert_eq!(got(&[CAMERA, &format!("Cookie: {SECRET}")]), "403");
            assert_eq!(got(&[CAMERA, "Cookie: autosam-8080=planted", &cookie]), "200");
            // A request to open a web socket.
            let socket = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"];
            assert_eq!(got(&[&[CAMERA][..], &socket].concat()), "403");
            assert_eq!(
                got(&[&[CAMERA, &cookie, "Origin: https://evil.example"][..], &socket].concat()),
                "403"
            );
        }
    }

    #[test]
    fn the_link_s_token_is_taken_once_and_kept_in_a_cookie() {
        let access = guarded(true);
        let link = Token(SECRET.into()).in_link("http://192.168.7.5:8080/");
        assert_eq!(link, format!("http://192.168.7.5:8080/?token={SECRET}"));
        let cookie =
            answer(&access, EVERYWHERE, &format!("GET /?a=b&token={SECRET}"), &[CAMERA]).unwrap().unwrap();
        let (pair, rest) = cookie.split_once("; ").unwrap();
        assert_eq!(rest, "Path=/; HttpOnly; SameSite=Strict");
        assert_eq!(
            answer(&access, EVERYWHERE, "GET /live.mjpeg", &[CAMERA, &format!("Cookie: {pair}")]),
            Ok(None)
        );
        // Of the page only: links to the video itself would be passed on.
        let elsewhere = format!("GET /live.mjpeg?token={SECRET}");
        assert_eq!(status(&access, EVERYWHERE, &elsewhere, &[CAMERA]), "403");
    }

    #[test]
    fn other_sites_requests_are_refused_on_loopback_too() {
        for (token, address, host) in
            [(false, LOOPBACK, "127.0.0.1:8080"), (true, EVERYWHERE, "192.168.7.5:8080")]
        {
            let (access, named) = (guarded(token), format!("Host: {host}"));
            let cookie = format!("Cookie: autosam-8080={SECRET}");
            let got = |first: &str, header: &str| status(&access, address, first, &[&named, &cookie, header]);
            for route in ROUTES {
                let (get, post) = (format!("GET {route}"), format!("POST {route}"));
                for origin in [
                    "https://evil.example",
                    "null",
                    "",
                    "http://127.0.0.1:3000",
                    "http://127.0.0.1",
                    "http://localhost:8080",
                    &format!("http://{host}.evil.example"),
                    &format!("ftp://{host}"),
                ] {
                    let origin = format!("Origin: {origin}");
                    assert_eq!(got(&get, &origin), "403", "{get} {origin}");
                    assert_eq!(got(&post, &origin), "403", "{post} {origin}");
                }
                let ours = format!("Origin: http://{host}");
                assert_eq!(got(&get, &ours), "200", "{get}");
                assert_eq!(got(&post, &ours), "200", "{post}");
                assert_eq!(got(&post, "X: y"), "403", "{post} without an origin");
                assert_eq!(got(&get, "Sec-Fetch-Site: cross-site"), "403", "{get} as another page's image");
                assert_eq!(got(&get, "Sec-Fetch-Site: same-origin"), "200", "{get}");
            }
            let followed = [&named, &cookie, "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"];
            assert_eq!(status(&access, address, "GET /", &followed), "200", "a link that is followed");
            let two = format!("Origin: http://{host}\r\nOrigin: https://evil.example");
            assert_eq!(got("POST /", &two), "403", "two origins");
        }
    }

    #[test]
    fn a_name_that_somebody_else_points_here_is_not_answered() {
        let own = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let own = own.trim();
        let cookie = format!("Cookie: autosam-8080={SECRET}");
        let got = |access: &Access, address: &str, host: &str| {
            status(access, address, "GET /", &[&format!("Host: {host}"), &cookie])
        };
        for access in [guarded(false), guarded(true)] {
            for host in [
                "localhost",
                "LOCALHOST:8080",
                "127.0.0.1",
                "127.0.0.1:1",
                "[::1]:8080",
                "or3.clinic.example",
            ] {
                assert_eq!(got(&access, LOOPBACK, host), "200", "{host}");
                assert_eq!(got(&access, EVERYWHERE, host), "200", "{host}");
            }
            for host in [
                "evil.example",
                "localhost.evil.example:8080",
                "127.0.0.1.evil.example",
                "",
                ":8080",
                "[",
                "[]",
            ] {
                assert_eq!(got(&access, LOOPBACK, host), "421", "{host}");
                assert_eq!(got(&access, EVERYWHERE, host), "421", "{host}");
            }
            assert_eq!(got(&access, LOOPBACK, "192.168.7.5:8080"), "421");
            assert_eq!(got(&access, EVERYWHERE, "192.168.7.5:8080"), "200");
            assert_eq!(got(&access, EVERYWHERE, "[fe80::1]:8080"), "200");
            if !own.is_empty() && own != "localhost" {
                assert_eq!(got(&access, EVERYWHERE, &format!("{own}:8080")), "200");
                assert_eq!(got(&access, LOOPBACK, own), "421");
            }
            assert_eq!(status(&access, LOOPBACK, "GET /", &[&cookie]), "400", "no Host");
            let two = ["Host: localhost", "Host: evil.example", &cookie];
            assert_eq!(status(&access, LOOPBACK, "GET /", &two), "400", "two Hosts");
        }
        // A rebound name is its own origin, which helps it nothing.
        let rebound = ["Host: evil.example:8080", "Origin: http://evil.example:8080", &cookie];
        assert_eq!(status(&guarded(true), EVERYWHERE, "POST /", &rebound), "421");
    }

    #[test]
    fn what_shows_no_patient_is_open_but_not_to_names_pointed_at_loopback() {
        assert_eq!(status(&Access::Open, EVERYWHERE, "GET /metrics", &["Host: any.example"]), "200");
        assert_eq!(status(&Access::Open, LOOPBACK, "GET /metrics", &["Host: localhost:8080"]), "200");
        assert_eq!(status(&Access::Open, LOOPBACK, "GET /metrics", &["Host: evil.example"]), "421");
    }

    #[test]
    fn tokens_are_random_and_not_shown() {
        let (one, other) = (Token::random().unwrap(), Token::random().unwrap());
        assert!(one.0.len() == 2 * RANDOM_BYTES && one.0 != other.0);
        assert!(one.is(&one.0.clone()) && !one.is(&other.0) && !one.is(""));
        let shown = format!("{:?}", Access::Guarded { token: Some(one.clone()), names: Vec::new() });
        assert!(!shown.contains(&one.0), "{shown}");
    }

    #[cfg(unix)]
    #[test]
    fn a_token_file_that_cannot_be_used_is_named_with_the_fix() {
        use std::os::unix::fs::PermissionsExt;
        let dir = std::env::temp_dir().join(format!("autosam-token-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("token");
        let read = |text: &str, mode: u32| {
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            Token::read(&file).map_err(|e| e.to_string())
        };
        assert!(read(&format!(" {SECRET}\n"), 0o600).unwrap().is(SECRET));
        assert!(read(SECRET, 0o640).is_ok());
        let open = read(SECRET, 0o644).unwrap_err();
        assert!(open.contains("chmod 600") && open.contains("token"), "{open}");
        for bad in ["", "short", "sixteen letters and spaces", &"x".repeat(257), "a;bcdefghijklmnopq"] {
            let said = read(bad, 0o600).unwrap_err();
            assert!(said.contains("openssl rand -hex 16") && said.contains("autosam-token-"), "{said}");
        }
        let gone = Token::read(&dir.join("none")).unwrap_err().to_string();
        assert!(gone.contains("none"), "{gone}");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
