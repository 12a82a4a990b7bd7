//! Who may ask: a request is answered only if it calls us by a name of ours, comes from no other site's page, and has
//! the token where one is required.
//!
//! A page of another site can make a browser send requests here. Where the name in `Host` is the other site's, which
//! leads to this machine for a moment (DNS rebinding), the name gives it away: we are called by `localhost`, by an
//! address, or by a name that the operator gave. Where it is ours, the browser says in `Origin` or `Sec-Fetch-Site`
//! whose page it is. No answer allows another origin to read it (there are no CORS headers).

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::api::problem::Problem;
use crate::dashboard;
use crate::error::{Error, Kind, Result};
use crate::token::TokenDigest;

/// What is asked of every request.
#[derive(Clone, Debug)]
pub struct Guard {
    /// Whether we listen on a loopback address only.
    pub is_loopback: bool,
    /// Names that we are called by, beside `localhost` and addresses.
    pub hosts: Vec<String>,
    /// The token that is required, if one is.
    pub token: Option<TokenDigest>,
}

/// Paths that need no token: they say that the daemon is there, and nothing else. The dashboard's files are the same
/// for everybody, too; what they show they ask for with the token.
const OPEN_PATHS: [&str; 2] = ["/healthz", "/readyz"];

/// Answers a request that may not be, lets others through.
pub async fn check(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    match guard.check(request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => Problem(error).into_response(),
    }
}

impl Guard {
    /// Fails for a request that may not be.
    pub fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<()> {
        let host = one(headers, header::HOST.as_str())?;
        let host = host.or(uri.authority().map(axum::http::uri::Authority::as_str));
        let Some(host) = host else {
            return Err(Error::input("the request has no header `Host`", "send one"));
        };
        if !self.is_ours(host) {
            return Err(Error::forbidden(
                format!("`{}` is no name of this daemon", shown(host)),
                "call it by its address, or start it with --host and the name",
            ));
        }
        if dashboard::is_of(uri.path()) {
            // A link of another site's page may lead here.
            return Ok(());
        }
        self.check_origin(host, headers)?;
        match &self.token {
            Some(token) if !OPEN_PATHS.contains(&uri.path()) => check_token(token, headers),
            _ => Ok(()),
        }
    }

    /// Whether a `Host` is one of ours, whatever the port.
    fn is_ours(&self, host: &str) -> bool {
        let name = without_port(host);
        let address = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
        match address.parse::<IpAddr>() {
            Ok(address) => !self.is_loopback || address.is_loopback(),
            Err(_) => {
                let known = self.hosts.iter().map(String::as_str).chain(["localhost"]);
                known.into_iter().any(|known| known.eq_ignore_ascii_case(name))
            }
        }
    }

    /// Refuses what another site's page makes a browser send.
    fn check_origin(&self, host: &str, headers: &HeaderMap) -> Result<()> {
        let refuse = || {
            Err(Error::forbidden(
                "the request comes from a page of another site",
                "open the daemon's own pages, or ask from a program",
            ))
        };
        if let Some(origin) = one(headers, header::ORIGIN.as_str())? {
            let of = origin.strip_prefix("http://").or(origin.strip_prefix("https://"));
            if !of.is_some_and(|of| of.eq_ignore_ascii_case(host)) {
                return refuse();
            }
        }
        match one(headers, "sec-fetch-site")? {
            None | Some("same-origin" | "none") => Ok(()),
            Some(_) => refuse(),
        }
    }
}

fn check_token(token: &TokenDigest, headers: &HeaderMap) -> Result<()> {
    let given = one(headers, header::AUTHORIZATION.as_str())?;
    let bearer = given.and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    let (message, hint) = match bearer {
        Some(given) if token.is_of(given) => return Ok(()),
        Some(_) => (
            "the token is not the daemon's",
            "take the one in `token` of its home folder, or the one that it was given in AHA_TOKEN",
        ),
        None => (
            "the request has no token",
            "send `Authorization: Bearer TOKEN`; the token is in `token` of the daemon's home folder",
        ),
    };
    Err(Error::new(Kind::Unauthorized, message).hint(hint))
}

/// The one value of a header; fails where there are several, or one that is no text.
fn one<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>> {
    let mut values = headers.get_all(name).iter();
    let bad = || Error::input(format!("the header `{name}` must be one text"), "send it once");
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| bad()),
        (Some(_), Some(_)) => Err(bad()),
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => {
            if name.contains(':') && !name.ends_with(']') {
                host
            } else {
                name
            }
        }
        _ => host,
    }
}

/// Somebody else's text, short.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(is_loopback: bool, token: Option<&str>) -> Guard {
        let token = token.map(TokenDigest::of);
        Guard { is_loopback, hosts: vec!["train.lan".into()], token }
    }

    fn ask(guard: &Guard, path: &str, headers: &[(&'static str, &str)]) -> Result<()> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        guard.check(&path.parse().unwrap(), &map)
    }

    fn kind(result: Result<()>) -> Option<Kind> {
        result.err().map(|error| error.kind)
    }

    #[test]
    fn only_names_of_ours_are_answered() {
        let here = guard(true, None);
        for host in
            ["localhost", "LOCALHOST:7717", "127.0.0.1:7717", "127.9.9.9", "[::1]:80", "train.lan"]
        {
            assert_eq!(kind(ask(&here, "/", &[("host", host)])), None, "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example:7717",
            "10.0.0.1",
            "train.lan.evil",
            "",
            "[::2]",
        ] {
            assert_eq!(kind(ask(&here, "/", &[("host", host)])), Some(Kind::Forbidden), "{host}");
        }
        assert_eq!(kind(ask(&guard(false, None), "/", &[("host", "10.0.0.1:1")])), None);
        assert_eq!(kind(ask(&here, "/", &[])), Some(Kind::Input));
        let two = [("host", "localhost"), ("host", "evil.example")];
        assert_eq!(kind(ask(&here, "/", &two)), Some(Kind::Input));
    }

    #[test]
    fn pages_of_other_sites_are_refused() {
        let here = guard(true, None);
        let with =
            |name, value| ask(&here, "/api/v1/runs", &[("host", "localhost:7717"), (name, value)]);
        assert_eq!(kind(with("origin", "http://localhost:7717")), None);
        let link = [("host", "localhost:7717"), ("sec-fetch-site", "cross-site")];
        assert_eq!(kind(ask(&here, "/", &link)), None, "a link to the dashboard");
        let foreign = [("host", "evil.example"), ("sec-fetch-site", "cross-site")];
        assert_eq!(kind(ask(&here, "/", &foreign)), Some(Kind::Forbidden));
        for origin in [
            "http://evil.example",
            "null",
            "http://localhost:1",
            "http://127.0.0.1:7717",
            "localhost:7717",
        ] {
            assert_eq!(kind(with("origin", origin)), Some(Kind::Forbidden), "{origin}");
        }
        assert_eq!(kind(with("sec-fetch-site", "same-origin")), None);
        assert_eq!(kind(with("sec-fetch-site", "cross-site")), Some(Kind::Forbidden));
        assert_eq!(kind(with("sec-fetch-site", "same-site")), Some(Kind::Forbidden));
    }

    #[test]
    fn a_token_is_required_where_there_is_one() {
        let guard = guard(false, Some("the right token"));
        let with =
            |value| ask(&guard, "/api/v1/runs", &[("host", "10.0.0.1"), ("authorization", value)]);
        assert_eq!(kind(with("Bearer the right token")), None);
        assert_eq!(kind(with("bearer the right token")), None);
        for bad in ["Bearer the right toke", "Bearer ", "the right token", "Basic the right token"]
        {
            assert_eq!(kind(with(bad)), Some(Kind::Unauthorized), "{bad}");
        }
        let bare = [("host", "10.0.0.1")];
        assert_eq!(kind(ask(&guard, "/metrics", &bare)), Some(Kind::Unauthorized));
        for open in ["/healthz", "/", "/assets/dashboard.js"] {
            assert_eq!(kind(ask(&guard, open, &bare)), None, "{open}");
        }
    }
}
