//! How the daemon is asked: by HTTP, where the home folder says it listens, with the token that is there.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::time::Duration;

use aha_daemon::home::{self, Home};
use anyhow::Context;
use serde_json::Value;
use ureq::http::Response;
use ureq::{Agent, Body};

use crate::report::{failed, misuse};

/// Largest answer that is read whole.
const ANSWER_BYTES_MAX: u64 = 256 << 20;
/// How long a connection is waited for.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// Which daemon is asked.
#[derive(clap::Args)]
#[command(next_help_heading = "Which daemon")]
pub struct Args {
    /// The daemon's home folder, which says where it listens. By default `aha` in XDG's folder of data.
    #[arg(long, value_name = "DIR")]
    home: Option<PathBuf>,
    /// Where the daemon listens, such as http://train.lan:7717, if it is elsewhere. The token is then taken from
    /// AHA_TOKEN.
    #[arg(long, value_name = "URL", conflicts_with = "home")]
    url: Option<String>,
}

/// Asks a daemon.
pub struct Client {
    agent: Agent,
    url: String,
    token: Option<String>,
}

impl Client {
    /// Finds the daemon.
    pub fn new(args: &Args) -> anyhow::Result<Client> {
        let variable = std::env::var("AHA_TOKEN").ok().filter(|token| !token.is_empty());
        let (url, token) = match &args.url {
            Some(url) => (url.trim_end_matches('/').to_owned(), variable),
            None => {
                let home = args.home.clone().or_else(home::default_root).ok_or_else(|| {
                    misuse("there is no home folder", "give the daemon's with --home, or its --url")
                })?;
                let home = Home::new(home);
                let address = home.read_address().ok_or_else(|| no_daemon(&home))?;
                let saved = || std::fs::read_to_string(home.token()).ok();
                (address.url, variable.or_else(saved))
            }
        };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // A daemon on this machine is not behind a proxy.
            .proxy(None)
            .timeout_connect(Some(CONNECT_TIME));
        let token = token.map(|token| token.trim().to_owned());
        Ok(Client { agent: config.build().new_agent(), url, token })
    }

    /// What is at a path.
    pub fn get(&self, path: &str) -> anyhow::Result<Value> {
        let request = self.agent.get(format!("{}{path}", self.url));
        let request = match self.bearer() {
            Some(bearer) => request.header("authorization", bearer),
            None => request,
        };
        self.json(request.call())
    }

    /// All runs, or those in a state.
    pub fn runs(&self, status: Option<&str>) -> anyhow::Result<Vec<Value>> {
        let filter = status.map(|status| format!("&status={status}")).unwrap_or_default();
        let mut runs: Vec<Value> = Vec::new();
        loop {
            let after = runs.last().and_then(|run| run["id"].as_u64()).unwrap_or(0);
            let mut found = self.get(&format!("/api/v1/runs?after={after}{filter}"))?;
            match found["runs"].as_array_mut() {
                Some(page) if !page.is_empty() => runs.append(page),
                _ => return Ok(runs),
            }
        }
    }

    /// Asks for something to be done.
    pub fn post(&self, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let request = self.agent.post(format!("{}{path}", self.url));
        let request = match self.bearer() {
            Some(bearer) => request.header("authorization", bearer),
            None => request,
        };
        match body {
            None => self.json(request.send_empty()),
            Some(body) => {
                let request = request.header("content-type", "application/json");
                self.json(request.send(body.to_string().as_bytes()))
            }
        }
    }

    /// The lines at a path, as they come.
    pub fn lines(&self, path: &str) -> anyhow::Result<impl BufRead + use<>> {
        let request = self.agent.get(format!("{}{path}", self.url));
        let request = match self.bearer() {
            Some(bearer) => request.header("authorization", bearer),
            None => request,
        };
        let mut response = self.reached(request.call())?;
        match response.status().is_success() {
            true => Ok(BufReader::new(response.into_body().into_reader())),
            false => Err(refused(&mut response)),
        }
    }

    fn bearer(&self) -> Option<String> {
        self.token.as_ref().map(|token| format!("Bearer {token}"))
    }

    fn json(&self, answer: Result<Response<Body>, ureq::Error>) -> anyhow::Result<Value> {
        let mut response = self.reached(answer)?;
        if !response.status().is_success() {
            return Err(refused(&mut response));
        }
        let text = read(&mut response)?;
        serde_json::from_str(&text).with_context(|| format!("{} answers no JSON", self.url))
    }

    fn reached(
        &self,
        answer: Result<Response<Body>, ureq::Error>,
    ) -> anyhow::Result<Response<Body>> {
        answer.map_err(|error| {
            failed(
                format!("the daemon at {} can't be reached: {error}", self.url),
                "start it with `aha daemon`, or give its --home or --url",
            )
        })
    }
}

fn no_daemon(home: &Home) -> anyhow::Error {
    failed(
        format!("no daemon works in `{}`", home.root().display()),
        "start it with `aha daemon`, or give its --home or --url",
    )
}

fn read(response: &mut Response<Body>) -> anyhow::Result<String> {
    let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX);
    body.read_to_string().context("the daemon's answer broke off")
}

/// What the daemon says of a request that it refused: wrong requests are misuse.
fn refused(response: &mut Response<Body>) -> anyhow::Error {
    let status = response.status().as_u16();
    let text = read(response).unwrap_or_default();
    let document: Value = serde_json::from_str(&text).unwrap_or_default();
    let detail = document["detail"].as_str().map(str::to_owned);
    let message = detail.unwrap_or_else(|| format!("the daemon answers with status {status}"));
    let message = problems(&document).unwrap_or(message);
    let hint = document["hint"].as_str().unwrap_or("look at what the daemon says on stderr");
    match status {
        400 | 404 => misuse(message, hint),
        _ => failed(message, hint),
    }
}

/// Every problem of a pipeline, where there are several.
fn problems(document: &Value) -> Option<String> {
    let problems = document["problems"].as_array().filter(|problems| problems.len() > 1)?;
    let lines = problems.iter().map(|problem| {
        let text = |key: &str| problem[key].as_str().unwrap_or_default();
        format!("\n  {}:{}: {}", text("file"), problem["line"], text("message"))
    });
    Some(format!("the pipeline has {} problems:{}", problems.len(), lines.collect::<String>()))
}
