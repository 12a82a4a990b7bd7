//! Completions of an OpenAI-compatible server in a model's place.
//!
//! - [`Server`]: calls in, outcomes out, each call asked once; a bounded number of threads waits.
//! - [`request`] and [`read`]: what is sent, and what is made of a reply. Pure.
//!
//! A call is tried again where that may help. A server that asks for a pause with `Retry-After` gets it from all calls.
//! The key is in no message: the client takes it out of whatever a server says.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aha_compute::random::Philox;
use aha_reward::NoBackends;
use aha_reward::wait::answers::Answers;
use aha_reward::wait::client::Client;
use aha_reward::wait::pool::Pool;
use aha_reward::wait::retry::{Failure, Limits, Trouble, retry};
use aha_reward::wait::{Cancel, Key, key};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};

use crate::clock;
use crate::error::{Error, Result};
use crate::generate::address;
use crate::pipeline::{Api, Endpoint, Sampling, Template};

/// Longest body of a reply, for each token of a completion that may be in it, and besides. With ids and log-probs a
/// token takes less than 200 bytes.
const REPLY_BYTES_PER_TOKEN: u64 = 1 << 10;
const REPLY_BYTES_MIN: u64 = 1 << 20;
/// Longest text of a server that goes into a message.
const EXCERPT_CHARS_MAX: usize = 80;
/// Longest word that is taken as the reason of an end.
const REASON_CHARS_MAX: usize = 32;

/// A completion, as a server gave it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Given {
    /// What the model wrote.
    pub text: String,
    /// Why it ended, in our words where we have one.
    pub finish_reason: String,
    /// Tokens that went in; empty where they weren't asked for.
    pub prompt_token_ids: Vec<u32>,
    /// Tokens that came out; likewise.
    pub token_ids: Vec<u32>,
    /// Their log-probs; as many.
    pub logprobs: Vec<f32>,
    /// How many they are, where the server says it.
    pub len_tokens: Option<u64>,
    /// When it came, in µs since 1970, UTC.
    pub finished_at_us: i64,
}

/// What came of a call. The first two are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A completion.
    Given(Given),
    /// The server finds fault with the request.
    Refused(String),
    /// Every try failed; why the last one did.
    #[serde(skip)]
    Failed(String),
}

/// A completion to ask for.
#[derive(Clone, Debug)]
pub struct Call {
    key: Key,
    body: String,
}

/// The server, and how it is asked.
pub struct Server {
    client: Client,
    limits: Limits,
    cancel: Cancel,
    pool: Pool,
    settings: Endpoint,
    sampling: Sampling,
    template: Template,
    /// Text with `{prompt}` in it that is put around each prompt, inside the template.
    instruction: Option<&'static str>,
    random: Philox,
    /// Before this nothing is asked: the server said so.
    not_before: Mutex<Option<Instant>>,
}

impl Server {
    /// Fails where the settings can't be, or where the key isn't set. `random` is the family of the seeds.
    pub fn new(
        settings: &Endpoint,
        sampling: &Sampling,
        template: &Template,
        random: Philox,
        cancel: Cancel,
    ) -> Result<Server> {
        let service = settings.service();
        let client = service.client(settings.path(), &NoBackends).map_err(|problems| {
            let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
            Error::input(format!("endpoint: {}", texts.join("; ")))
        })?;
        let reply_bytes_max =
            REPLY_BYTES_MIN + REPLY_BYTES_PER_TOKEN * u64::from(sampling.max_tokens);
        Ok(Server {
            client: client.with_reply_bytes_max(reply_bytes_max),
            limits: service.limits(),
            cancel,
            pool: Pool::new("aha-endpoint", service.parallel_max),
            settings: settings.clone(),
            sampling: sampling.clone(),
            template: template.clone(),
            instruction: None,
            random,
            not_before: Mutex::new(None),
        })
    }

    /// Puts a text around each prompt, such as a benchmark's question.
    pub fn with_instruction(self, text: &'static str) -> Server {
        Server { instruction: Some(text), ..self }
    }

    /// The call for a completion of a prompt.
    pub fn call(&self, prompt_id: &str, prompt: &str, sample_idx: u32) -> Call {
        let seed = self.settings.sends_seed.then(|| {
            // Positive in 32 bits: more than some servers take.
            self.random.bits(&[address(prompt_id), u64::from(sample_idx)]) >> 33
        });
        let within = |text: &str, prompt: &str| text.replacen("{prompt}", prompt, 1);
        let question = self.instruction.map(|text| within(text, prompt));
        let prompt = question.as_deref().unwrap_or(prompt);
        let text = match &self.template {
            Template::Text(template) => within(template, prompt),
            Template::Raw | Template::Chat | Template::R1Zero => prompt.to_owned(),
        };
        let body = request(&self.settings, &self.sampling, &text, seed).to_string();
        let sample = sample_idx.to_string();
        Call { key: key(&["completion", self.client.url(), &body, prompt_id, &sample]), body }
    }

    /// The outcome of each call, in order. What `answers` has is not asked again, and what comes is kept there. Fails
    /// with [`Error::Interrupted`] where the run was stopped meanwhile.
    pub fn ask(self: &Arc<Self>, answers: &Arc<Answers>, calls: Vec<Call>) -> Result<Vec<Outcome>> {
        let jobs = calls.into_iter().map(|call| {
            let (server, answers) = (Arc::clone(self), Arc::clone(answers));
            move || server.outcome(&answers, &call)
        });
        let outcomes = self.pool.run(&self.cancel, jobs.collect());
        if self.cancel.is_raised() {
            return Err(Error::Interrupted);
        }
        let panicked = || Err("asking panicked, or no thread could be started".to_owned());
        outcomes
            .into_iter()
            .map(|outcome| outcome.unwrap_or_else(panicked).map_err(Error::bug))
            .collect()
    }

    /// The outcome of one call; an error where it can't be kept.
    fn outcome(&self, answers: &Answers, call: &Call) -> Result<Outcome, String> {
        if let Some(Ok(known)) = answers.get(&call.key)? {
            return serde_json::from_str(&known).map_err(|error| error.to_string());
        }
        let tried = retry(&self.limits, &self.cancel, &call.key, |time| self.post(call, time));
        let outcome = match tried {
            Ok(outcome) => outcome,
            Err(Failure::Stopped) => return Ok(Outcome::Failed("the run was stopped".to_owned())),
            Err(Failure::Failed(reason)) => return Ok(Outcome::Failed(reason)),
        };
        if !self.cancel.is_raised() {
            let text = serde_json::to_string(&outcome).map_err(|error| error.to_string())?;
            answers.keep(&call.key, Ok(text))??;
        }
        Ok(outcome)
    }

    /// One try.
    fn post(&self, call: &Call, time: Duration) -> Result<Outcome, Trouble> {
        self.pause();
        let reply = match self.client.post(&call.body, time) {
            Ok(reply) => reply,
            Err(Trouble::Refused(reason)) => return Ok(Outcome::Refused(reason)),
            Err(Trouble::Passing { reason, after }) => {
                self.hold(after);
                return Err(Trouble::Passing { reason, after });
            }
            Err(lasting) => return Err(lasting),
        };
        let given = read(&reply, &self.settings)?;
        Ok(Outcome::Given(Given { finished_at_us: clock::now_us(), ..given }))
    }

    /// Waits until the server's pause is over.
    fn pause(&self) {
        let until = *self.not_before.lock().unwrap_or_else(PoisonError::into_inner);
        let left = until.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
        // A longer pause than there is time ends the call anyway.
        self.cancel.sleep(left.min(self.limits.total_max));
    }

    fn hold(&self, after: Option<Duration>) {
        let Some(until) = after.and_then(|after| Instant::now().checked_add(after)) else { return };
        let mut not_before = self.not_before.lock().unwrap_or_else(PoisonError::into_inner);
        *not_before = Some(not_before.map_or(until, |at| at.max(until)));
    }
}

/// What is sent for a completion of `prompt`.
pub fn request(settings: &Endpoint, sampling: &Sampling, prompt: &str, seed: Option<u64>) -> Json {
    let mut body = Map::new();
    let mut set = |name: &str, value: Json| {
        body.insert(name.to_owned(), value);
    };
    set("model", json!(settings.model));
    match settings.api {
        Api::Chat => {
            let system = settings.system.as_ref();
            let system = system.map(|text| json!({"role": "system", "content": text}));
            let user = json!({"role": "user", "content": prompt});
            set("messages", system.into_iter().chain([user]).collect());
        }
        Api::Completions => set("prompt", json!(prompt)),
    }
    set("max_tokens", json!(sampling.max_tokens));
    set("temperature", json!(sampling.temperature));
    set("top_p", json!(sampling.top_p));
    if sampling.top_k > 0 {
        set("top_k", json!(sampling.top_k));
    }
    if !sampling.stop.is_empty() {
        set("stop", json!(sampling.stop));
    }
    if !sampling.stop_token_ids.is_empty() {
        set("stop_token_ids", json!(sampling.stop_token_ids));
    }
    if let Some(seed) = seed {
        set("seed", json!(seed));
    }
    if settings.token_ids {
        set("return_token_ids", json!(true));
        let logprobs = match settings.api {
            Api::Chat => json!(true),
            Api::Completions => json!(1),
        };
        set("logprobs", logprobs);
    }
    Json::Object(body)
}

/// The completion in a reply. One that can't be read may be another's, such as a proxy's, and is worth another try.
pub fn read(reply: &str, settings: &Endpoint) -> Result<Given, Trouble> {
    let passing = |what: &str| Trouble::Passing {
        reason: format!("the endpoint's answer {what}: {}", excerpt(reply)),
        after: None,
    };
    let json: Json = serde_json::from_str(reply).map_err(|_| passing("is no JSON"))?;
    let choice = json.pointer("/choices/0").ok_or_else(|| passing("has no `choices[0]`"))?;
    let text = match settings.api {
        Api::Chat => text_of_message(choice.get("message")),
        Api::Completions => choice.get("text").and_then(Json::as_str).map(str::to_owned),
    };
    let text = text.ok_or_else(|| match settings.api {
        Api::Chat => passing("has no `choices[0].message.content`"),
        Api::Completions => passing("has no `choices[0].text`"),
    })?;
    let mut given = Given {
        text,
        finish_reason: finish_reason(choice),
        len_tokens: json.pointer("/usage/completion_tokens").and_then(Json::as_u64),
        ..Given::default()
    };
    if settings.token_ids {
        read_tokens(&mut given, &json, choice).map_err(Trouble::Lasting)?;
    }
    Ok(given)
}

/// What an assistant's message says: its reasoning, where the server has taken that out, and its content. A reasoning
/// without content was cut off.
fn text_of_message(message: Option<&Json>) -> Option<String> {
    let text = |name: &str| message?.get(name)?.as_str();
    let reasoning = text("reasoning_content").or_else(|| text("reasoning"));
    match (reasoning.filter(|text| !text.is_empty()), text("content")) {
        (Some(reasoning), Some(content)) => Some(format!("<think>{reasoning}</think>{content}")),
        (Some(reasoning), None) => Some(format!("<think>{reasoning}")),
        (None, content) => content.map(str::to_owned),
    }
}

/// Our word for why a completion ended; the server's own where we have none.
fn finish_reason(choice: &Json) -> String {
    let word = choice.get("finish_reason").and_then(Json::as_str).unwrap_or_default();
    let is_text = choice.get("stop_reason").is_some_and(Json::is_string);
    let is_word = |c: char| c.is_ascii_lowercase() || c == '_';
    match word {
        "stop" if is_text => aha_sample::FinishReason::StopString.as_str().to_owned(),
        "" => "unknown".to_owned(),
        word if word.len() <= REASON_CHARS_MAX && word.chars().all(is_word) => word.to_owned(),
        _ => "unknown".to_owned(),
    }
}

/// Ids and log-probs, as vLLM gives them.
fn read_tokens(given: &mut Given, json: &Json, choice: &Json) -> Result<(), String> {
    let ids = |list: Option<&Json>| -> Option<Vec<u32>> {
        let id = |id: &Json| u32::try_from(id.as_u64()?).ok();
        list?.as_array()?.iter().map(id).collect()
    };
    let lacking =
        "the endpoint gives no token ids: leave `token_ids` out, or ask a server that gives them";
    let prompt = choice.get("prompt_token_ids").filter(|ids| !ids.is_null());
    given.prompt_token_ids = ids(prompt.or_else(|| json.get("prompt_token_ids"))).ok_or(lacking)?;
    given.token_ids = ids(choice.get("token_ids")).ok_or(lacking)?;
    let of_chat = choice.pointer("/logprobs/content").and_then(Json::as_array);
    let of_text = choice.pointer("/logprobs/token_logprobs").and_then(Json::as_array);
    let logprobs: Option<Vec<f32>> = match (of_chat, of_text) {
        (Some(tokens), _) => {
            tokens.iter().map(|token| Some(token.get("logprob")?.as_f64()? as f32)).collect()
        }
        (None, Some(logprobs)) => logprobs.iter().map(|x| Some(x.as_f64()? as f32)).collect(),
        (None, None) => None,
    };
    given.logprobs =
        logprobs.ok_or("the endpoint gives no log-probs of its tokens: leave `token_ids` out")?;
    let (tokens, logprobs) = (given.token_ids.len(), given.logprobs.len());
    if tokens != logprobs {
        return Err(format!("the endpoint gives {tokens} token ids and {logprobs} log-probs"));
    }
    given.len_tokens = Some(tokens as u64);
    Ok(())
}

/// The beginning of a text on one line.
fn excerpt(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let mut short: String = text.chars().take(EXCERPT_CHARS_MAX).map(plain).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(api: Api) -> Endpoint {
        let (url, model) = ("http://127.0.0.1:1/v1".to_owned(), "teacher".to_owned());
        Endpoint { url, model, api, ..Endpoint::default() }
    }

    #[test]
    fn a_request_has_what_was_set_and_no_more() {
        let plain = request(&settings(Api::Completions), &Sampling::default(), "2+2=", None);
        let want = json!({
            "model": "teacher", "prompt": "2+2=", "max_tokens": 256, "temperature": 1.0, "top_p": 1.0,
        });
        assert_eq!(plain, want);
        let sampling = Sampling {
            temperature: 0.6,
            top_p: 0.95,
            top_k: 20,
            max_tokens: 99,
            stop: vec!["\n\n".to_owned()],
            stop_token_ids: vec![7],
            ..Sampling::default()
        };
        let chat = Endpoint {
            system: Some("Be brief.".to_owned()),
            token_ids: true,
            ..settings(Api::Chat)
        };
        let want = json!({
            "model": "teacher",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "2+2="},
            ],
            "max_tokens": 99, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "stop": ["\n\n"],
            "stop_token_ids": [7], "seed": 5, "return_token_ids": true, "logprobs": true,
        });
        assert_eq!(request(&chat, &sampling, "2+2=", Some(5)), want);
        let text = Endpoint { token_ids: true, ..settings(Api::Completions) };
        assert_eq!(request(&text, &sampling, "", None)["logprobs"], json!(1));
    }

    #[test]
    fn a_reply_is_text_with_its_end_and_its_length() {
        let chat = settings(Api::Chat);
        let reply = |message: Json, more: Json| {
            let mut choice = json!({"message": message});
            choice.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({"choices": [choice], "usage": {"completion_tokens": 3}}).to_string()
        };
        for (message, more, text, reason) in [
            (json!({"content": "4"}), json!({"finish_reason": "stop"}), "4", "stop"),
            (
                json!({"content": "4"}),
                json!({"finish_reason": "stop", "stop_reason": "\n"}),
                "4",
                "stop_string",
            ),
            (
                json!({"content": "4"}),
                json!({"finish_reason": "stop", "stop_reason": 7}),
                "4",
                "stop",
            ),
            (
                json!({"content": "\n4", "reasoning_content": "2 and 2"}),
                json!({"finish_reason": "content_filter"}),
                "<think>2 and 2</think>\n4",
                "content_filter",
            ),
            (
                json!({"content": null, "reasoning": "2 and"}),
                json!({"finish_reason": "length"}),
                "<think>2 and",
                "length",
            ),
            (json!({"content": ""}), json!({"finish_reason": "<b>"}), "", "unknown"),
        ] {
            let given = read(&reply(message, more), &chat).unwrap();
            assert_eq!((given.text.as_str(), given.finish_reason.as_str()), (text, reason));
            assert_eq!(given.len_tokens, Some(3));
        }
        for (bad, what) in [
            ("<html>", "is no JSON: <html>"),
            ("{}", "has no `choices[0]`"),
            (r#"{"choices": [{"message": {"tool_calls": []}}]}"#, "message.content"),
        ] {
            let Err(Trouble::Passing { reason, after: None }) = read(bad, &chat) else {
                panic!("worth another try")
            };
            assert!(reason.contains(what), "{reason}");
        }
        let text = read(r#"{"choices": [{"text": "4"}]}"#, &settings(Api::Completions)).unwrap();
        assert_eq!((text.text.as_str(), text.len_tokens), ("4", None));
    }

    #[test]
    fn tokens_are_read_where_they_are_asked_for_and_their_lack_is_said() {
        let [chat, plain] =
            [Api::Chat, Api::Completions].map(|api| Endpoint { token_ids: true, ..settings(api) });
        let of_chat = json!({"prompt_token_ids": [1, 2], "choices": [{
            "message": {"content": "4"}, "token_ids": [8, 9],
            "logprobs": {"content": [{"logprob": -0.5}, {"logprob": -0.25}]},
        }]});
        let of_text = json!({"choices": [{
            "text": "4", "token_ids": [8, 9], "prompt_token_ids": [1, 2],
            "logprobs": {"token_logprobs": [-0.5, -0.25]},
        }]});
        for (reply, settings) in [(&of_chat, &chat), (&of_text, &plain)] {
            let given = read(&reply.to_string(), settings).unwrap();
            assert_eq!((given.prompt_token_ids, given.token_ids), (vec![1, 2], vec![8, 9]));
            assert_eq!((given.logprobs, given.len_tokens), (vec![-0.5, -0.25], Some(2)));
        }
        let without = |path: &str| {
            let mut reply = of_chat.clone();
            *reply.pointer_mut(path).unwrap() = Json::Null;
            match read(&reply.to_string(), &chat) {
                Err(Trouble::Lasting(reason)) => reason,
                other => panic!("{other:?}"),
            }
        };
        assert!(without("/choices/0/token_ids").contains("leave `token_ids` out"));
        assert!(without("/prompt_token_ids").contains("leave `token_ids` out"));
        assert!(without("/choices/0/logprobs").contains("no log-probs"));
        assert!(without("/choices/0/logprobs/content/1").contains("no log-probs"));
        let mut short = of_chat.clone();
        short["choices"][0]["token_ids"] = json!([8]);
        assert!(matches!(read(&short.to_string(), &chat), Err(Trouble::Lasting(_))));
        // Not asked for, they are left where they are.
        assert!(read(&of_chat.to_string(), &settings(Api::Chat)).unwrap().token_ids.is_empty());
    }

    #[test]
    fn calls_are_told_apart_and_their_seeds_are_functions_of_their_place() {
        let server = |settings: &Endpoint| {
            let template = Template::Text("Q: {prompt}".to_owned());
            let (sampling, random) = (Sampling::default(), Philox::new(1));
            Server::new(settings, &sampling, &template, random, Cancel::default()).unwrap()
        };
        let plain = settings(Api::Completions);
        let seeded = server(&plain);
        let call = seeded.call("p", "{prompt}", 0);
        let body: Json = serde_json::from_str(&call.body).unwrap();
        assert_eq!(body["prompt"], "Q: {prompt}");
        assert!(body["seed"].as_u64().unwrap() < 1 << 31);
        assert_eq!(seeded.call("p", "{prompt}", 0).body, call.body);
        let other = seeded.call("p", "{prompt}", 1);
        assert!(other.body != call.body && other.key != call.key);
        let unseeded = server(&Endpoint { sends_seed: false, ..plain });
        let calls = [0, 1].map(|sample_idx| unseeded.call("p", "x", sample_idx));
        assert!(calls[0].body == calls[1].body && calls[0].key != calls[1].key);
        assert!(!calls[0].body.contains("seed"));
    }
}
