//! HTTP: one address, posts only. Every try has a time limit, every reply a size limit, certificates are
//! checked, redirects are not followed, and what the environment says of proxies counts on request only.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use ureq::http::Uri;
use ureq::{Agent, Proxy};

use super::pool::THREADS_MAX;
use super::retry::{Limits, Trouble};
use crate::backend::Backends;
use crate::spec::Problem;
use crate::verifier::excerpt;

/// Longest body of a reply, unless whoever has the client says otherwise.
pub const REPLY_BYTES_MAX: u64 = 1 << 20;

/// Longest time that can be set, in seconds: a day.
const SECONDS_MAX: f64 = 86_400.0;
/// Shorter keys are placeholders, such as servers on one's own machine want, and may be part of any word.
const KEY_BYTES_MIN: usize = 8;
/// Most retries that can be set.
const RETRIES_MAX: u32 = 100;

/// Where a service is, and how long it is waited for.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Settings {
    /// The address, beginning with `http://` or `https://`; what is secret in it would be in the run's files.
    pub url: Option<String>,
    /// The NAME of an environment variable that holds the key, which is sent as a bearer token. The key itself
    /// is in no file and no message, also where the service repeats it, if it has 8 characters or more. Default:
    /// no key.
    pub api_key_env: Option<String>,
    /// Whether the proxy counts that the environment names (`HTTPS_PROXY` and its like). Default false: a run
    /// talks to the address that it was given.
    pub use_proxy: bool,
    /// Calls under way at once, over all completions, from 1 to 1024. Default 16: more than one server's
    /// processor is busy with.
    pub parallel_max: usize,
    /// Time of one call in seconds, above 0, at most a day. Default 60: long enough for a page of text.
    pub call_seconds_max: f64,
    /// Tries after the first, at most, from 0 to 100: for time-outs, broken connections and the statuses 408, 425,
    /// 429 and 5xx. The pause doubles from half a second to 30 s, or is what `Retry-After` says. Default 5.
    pub retries_max: u32,
    /// Time of all tries and pauses for a completion in seconds, above 0, at most a day. Default 300.
    pub total_seconds_max: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            url: None,
            api_key_env: None,
            use_proxy: false,
            parallel_max: 16,
            call_seconds_max: 60.0,
            retries_max: 5,
            total_seconds_max: 300.0,
        }
    }
}

impl Settings {
    /// Bounds of a call.
    pub fn limits(&self) -> Limits {
        Limits {
            call_max: Duration::from_secs_f64(self.call_seconds_max),
            total_max: Duration::from_secs_f64(self.total_seconds_max),
            retries_max: self.retries_max,
        }
    }

    /// A client of the address followed by `path`, or every problem.
    pub fn client(&self, path: &str, backends: &dyn Backends) -> Result<Client, Vec<Problem>> {
        let mut problems = self.problems();
        let url = match &self.url {
            Some(url) => match uri_problem(url) {
                None => format!(
                    "{}{path}",
                    if path.is_empty() { url } else { url.trim_end_matches('/') }
                ),
                Some(must) => {
                    problems.push(Problem::new("url", must, format!("`{}`", without_secret(url))));
                    String::new()
                }
            },
            None => {
                problems.push(Problem::missing("url"));
                String::new()
            }
        };
        let key = match &self.api_key_env {
            Some(name) => match backends.variable(name) {
                Ok(key) if is_header_value(&key) => Some(key),
                Ok(_) => {
                    let must = "the name of a variable that holds a key: visible characters";
                    problems.push(Problem::new("api_key_env", must, format!("`{name}`")));
                    None
                }
                Err(got) => {
                    let must = "the name of an environment variable that is set";
                    problems.push(Problem::new("api_key_env", must, got));
                    None
                }
            },
            None => None,
        };
        if !problems.is_empty() {
            return Err(problems);
        }
        let proxy = if self.use_proxy { Proxy::try_from_env() } else { None };
        let config = Agent::config_builder()
            .proxy(proxy)
            .max_redirects(0)
            .http_status_as_error(false)
            .max_idle_connections_per_host(self.parallel_max)
            .max_idle_connections(self.parallel_max)
            .user_agent(concat!("aha/", env!("CARGO_PKG_VERSION")))
            .build();
        let agent = Agent::new_with_config(config);
        Ok(Client { agent, url, key, reply_bytes_max: REPLY_BYTES_MAX })
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut require = |is_good: bool, key, must: &str, got: String| {
            if !is_good {
                problems.push(Problem::new(key, must, got));
            }
        };
        let is_time = |seconds: f64| seconds > 0.0 && seconds <= SECONDS_MAX;
        let parallel = self.parallel_max;
        let must = "above 0 and at most 86400 seconds";
        let (call, total) = (self.call_seconds_max, self.total_seconds_max);
        require(
            (1..=THREADS_MAX).contains(&parallel),
            "parallel_max",
            "from 1 to 1024",
            parallel.to_string(),
        );
        require(is_time(call), "call_seconds_max", must, call.to_string());
        let retries = self.retries_max;
        require(retries <= RETRIES_MAX, "retries_max", "at most 100", retries.to_string());
        require(is_time(total), "total_seconds_max", must, total.to_string());
        problems
    }
}

/// What an address must be, where it isn't.
fn uri_problem(url: &str) -> Option<&'static str> {
    let Ok(uri) = url.parse::<Uri>() else { return Some("an address such as `https://host/path`") };
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
        return Some("an address that begins with `http://` or `https://` and a host");
    }
    let has_secret = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    has_secret.then_some(
        "without a name or password, which would be in the run's files: see `api_key_env`",
    )
}

/// The address with what stands before `@` left out.
fn without_secret(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://…@{host}"),
        _ => url.to_owned(),
    }
}

/// Whether text can be sent in a header, and is not empty.
fn is_header_value(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| (0x21..0x7f).contains(&byte))
}

/// Posts to one address.
pub struct Client {
    agent: Agent,
    url: String,
    key: Option<String>,
    reply_bytes_max: u64,
}

impl Client {
    /// The address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// With another bound on the body of a reply.
    #[must_use]
    pub fn with_reply_bytes_max(self, reply_bytes_max: u64) -> Client {
        Client { reply_bytes_max, ..self }
    }

    /// Posts JSON and returns the body of the reply, the key taken out: servers repeat keys that they don't know,
    /// some with a status that says all is well.
    pub fn post(&self, body: &str, time_max: Duration) -> Result<String, Trouble> {
        let mut request = self.agent.post(&self.url).header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        // A limit of nothing would be none.
        let time_max = time_max.max(Duration::from_millis(1));
        let request = request.config().timeout_global(Some(time_max)).build();
        let trouble = |error: &ureq::Error| trouble(error, time_max, self.reply_bytes_max);
        let mut reply = request.send(body).map_err(|error| trouble(&error))?;
        let status = reply.status().as_u16();
        let after =
            retry_after(reply.headers().get("retry-after").and_then(|value| value.to_str().ok()));
        if (300..400).contains(&status) {
            let reason =
                format!("the server answered {status}: it redirects, which is not followed");
            return Err(Trouble::Lasting(reason));
        }
        let is_good = (200..300).contains(&status);
        let text = reply.body_mut().with_config().limit(self.reply_bytes_max).read_to_vec();
        if !is_good {
            let text = String::from_utf8_lossy(&text.unwrap_or_default()).into_owned();
            let reason =
                format!("the server answered {status}: {}", excerpt(&self.without_key(text)));
            return Err(match status {
                408 | 425 | 429 | 500.. => Trouble::Passing { reason, after },
                400 | 413 | 422 => Trouble::Refused(reason),
                _ => Trouble::Lasting(reason),
            });
        }
        let bytes = text.map_err(|error| trouble(&error))?;
        String::from_utf8(bytes)
            .map(|text| match &self.key {
                Some(key) if key.len() >= KEY_BYTES_MIN => self.without_key(text),
                _ => text,
            })
            .map_err(|_| Trouble::Lasting("the server's answer is not UTF-8".to_owned()))
    }

    /// A reply with the key taken out, as it is and as JSON may write it.
    fn without_key(&self, text: String) -> String {
        let Some(key) = &self.key else { return text };
        let escaped = key.replace('\\', r"\\").replace('"', r#"\""#);
        let slashed = escaped.replace('/', r"\/");
        [key, &escaped, &slashed].iter().fold(text, |text, key| text.replace(key.as_str(), "…"))
    }
}

/// The pause that a server asks for, where it says it in seconds; our own stands in for a date.
fn retry_after(value: Option<&str>) -> Option<Duration> {
    let seconds: f64 = value?.trim().parse().ok()?;
    (0.0..=SECONDS_MAX).contains(&seconds).then(|| Duration::from_secs_f64(seconds))
}

/// What an error of the client means.
fn trouble(error: &ureq::Error, time_max: Duration, reply_bytes_max: u64) -> Trouble {
    let passing = |reason: String| Trouble::Passing { reason, after: None };
    match error {
        ureq::Error::Timeout(_) => {
            passing(format!("no answer within {} s", time_max.as_secs_f64()))
        }
        ureq::Error::Io(error) => passing(format!("the connection failed: {error}")),
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed | ureq::Error::Protocol(_) => {
            passing(format!("the connection failed: {error}"))
        }
        ureq::Error::BodyExceedsLimit(_) => {
            Trouble::Lasting(format!("the server's answer is longer than {reply_bytes_max} bytes"))
        }
        error => Trouble::Lasting(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::NoBackends;

    fn problems(settings: &Settings) -> Vec<String> {
        let problems = settings.client("", &NoBackends).err().unwrap_or_default();
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_address_is_checked_and_keeps_its_secrets() {
        let at =
            |url: &str| problems(&Settings { url: Some(url.to_owned()), ..Settings::default() });
        for good in ["http://127.0.0.1:8000/v1", "https://example.org"] {
            assert!(at(good).is_empty(), "{good}");
        }
        for bad in ["", "127.0.0.1:80", "ftp://a/b", "http://", "http:///x", "http://a b/"] {
            assert_eq!(at(bad).len(), 1, "{bad}");
        }
        let secret = at("https://user:secret@host/x");
        assert!(secret[0].contains("`https://…@host/x`"), "{secret:?}");
    }

    #[test]
    fn limits_are_checked_all_at_once() {
        let settings = Settings {
            parallel_max: 0,
            call_seconds_max: f64::NAN,
            retries_max: 101,
            total_seconds_max: 0.0,
            api_key_env: Some("AHA_TEST_NOT_SET".to_owned()),
            ..Settings::default()
        };
        let keys: Vec<String> = problems(&settings)
            .iter()
            .map(|text| text.split('`').nth(1).unwrap().to_owned())
            .collect();
        let want = [
            "parallel_max",
            "call_seconds_max",
            "retries_max",
            "total_seconds_max",
            "url",
            "api_key_env",
        ];
        assert_eq!(keys, want);
    }

    #[test]
    fn a_server_says_in_seconds_how_long_to_wait() {
        assert_eq!(retry_after(Some(" 2 ")), Some(Duration::from_secs(2)));
        for other in
            [None, Some("Wed, 21 Oct 2015 07:28:00 GMT"), Some("-1"), Some("inf"), Some("1e9")]
        {
            assert_eq!(retry_after(other), None, "{other:?}");
        }
    }
}
