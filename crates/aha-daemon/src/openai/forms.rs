//! Requests and answers as OpenAI's API has them, as far as models here go.
//!
//! Keys that would change what is written and that we don't know how to obey are refused if they ask for something;
//! others are ignored, as they change nothing.

use std::collections::BTreeMap;

use aha_model::chat_template::Message;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::worker::{Drawing, Prompt};
use crate::error::{Error, Result};

/// Completions of a request, at most: those of all its prompts together.
pub const COMPLETIONS_MAX: usize = 128;
/// Tokens of a completion, at most.
const TOKENS_MAX: u32 = 1 << 20;
/// Tokens of a plain completion where a request says nothing, as OpenAI has it.
const PLAIN_TOKENS: u32 = 16;
/// Log-probs of other tokens beside one, at most.
const TOP_MAX: u32 = 20;
/// Texts that end a completion, at most.
const STOPS_MAX: usize = 16;

/// What requests of both kinds may say.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct Common {
    /// The model: `RUN/STAGE`, such as `3/zero`; or `RUN` for the one of that run that changed last.
    #[schema(example = "1/zero")]
    pub model: String,
    /// Logits are divided by it before the softmax; 0 takes the likeliest token. Absent: 1.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 100)]
    pub temperature: Option<f64>,
    /// Share of the likeliest tokens that are drawn from. Absent: 1, all.
    #[serde(default)]
    #[schema(exclusive_minimum = 0, maximum = 1)]
    pub top_p: Option<f64>,
    /// Number of the likeliest tokens that are drawn from. Absent: all.
    #[serde(default)]
    pub top_k: Option<u32>,
    /// Completions of each prompt. Absent: 1.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 128)]
    pub n: Option<u32>,
    /// Texts that end a completion, and are not part of it.
    #[serde(default)]
    pub stop: Option<OneOrMany>,
    /// Whether the answer comes token by token, as server-sent events. With log-probs of other tokens, or the prompt,
    /// each completion comes in one piece.
    #[serde(default)]
    pub stream: Option<bool>,
    /// What else comes in a stream.
    #[serde(default)]
    pub stream_options: Option<StreamOptions>,
    /// The same seed gives the same completions of the same weights. Absent: a new one.
    #[serde(default)]
    pub seed: Option<i64>,
    /// Only 0.
    #[serde(default)]
    pub frequency_penalty: Option<f64>,
    /// Only 0.
    #[serde(default)]
    pub presence_penalty: Option<f64>,
    /// Only empty.
    #[serde(default)]
    pub logit_bias: Option<BTreeMap<String, f64>>,
}

/// What else comes in a stream.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
pub struct StreamOptions {
    /// Whether a last event says how many tokens there were.
    #[serde(default)]
    pub include_usage: Option<bool>,
}

/// One text or several.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// A request for completions of a text.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct CompletionRequest {
    /// What both kinds of requests may say.
    #[serde(flatten)]
    pub common: Common,
    /// What goes in.
    pub prompt: Prompts,
    /// Tokens of a completion, at most; 0 with `echo` only. Absent: 16.
    #[serde(default)]
    pub max_tokens: Option<u32>,
    /// Whether log-probs are wanted, and of how many of the likeliest tokens beside each.
    #[serde(default)]
    #[schema(maximum = 20)]
    pub logprobs: Option<u32>,
    /// Whether the prompt comes before the completion, with its log-probs if those are wanted.
    #[serde(default)]
    pub echo: Option<bool>,
    /// Only absent.
    #[serde(default)]
    pub suffix: Option<String>,
    /// Only as many as `n`.
    #[serde(default)]
    pub best_of: Option<u32>,
}

/// What goes into a model as it is.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Prompts {
    /// A text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// Tokens.
    Ids(Vec<u32>),
    /// Several lists of tokens.
    IdLists(Vec<Vec<u32>>),
}

/// A request for answers in a conversation.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ChatRequest {
    /// What both kinds of requests may say.
    #[serde(flatten)]
    pub common: Common,
    /// The conversation.
    #[schema(min_items = 1)]
    pub messages: Vec<ChatMessage>,
    /// Tokens of an answer, at most. Absent: as many as there is room for, up to 1024.
    #[serde(default)]
    pub max_tokens: Option<u32>,
    /// The same; counts before `max_tokens`.
    #[serde(default)]
    pub max_completion_tokens: Option<u32>,
    /// Whether log-probs are wanted.
    #[serde(default)]
    pub logprobs: Option<bool>,
    /// Of how many of the likeliest tokens beside each.
    #[serde(default)]
    #[schema(maximum = 20)]
    pub top_logprobs: Option<u32>,
    /// Only text.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub response_format: Option<Map<String, Value>>,
    /// Only empty.
    #[serde(default)]
    #[schema(value_type = Option<Vec<Object>>)]
    pub tools: Option<Vec<Value>>,
}

/// One turn.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    #[serde(default)]
    pub content: Option<Content>,
}

/// What was said: a text, or parts that are texts.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Content {
    /// A text.
    Text(String),
    /// Texts, one behind the other.
    Parts(Vec<ContentPart>),
}

/// A part of what was said.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ContentPart {
    /// Only `text`.
    pub r#type: String,
    /// The text.
    #[serde(default)]
    pub text: Option<String>,
}

/// A request as it is served.
#[derive(Clone, Debug)]
pub struct Order {
    /// What goes in: one or several.
    pub prompts: Vec<Prompt>,
    /// How completions are drawn.
    pub drawing: Drawing,
    /// Completions of each prompt.
    pub n: u32,
    /// The seed, if one was given.
    pub seed: Option<i64>,
    /// Log-probs, and of how many tokens beside each.
    pub logprobs: Option<u32>,
    /// Whether the prompt comes first.
    pub echo: bool,
    /// Whether it comes token by token.
    pub stream: bool,
    /// Whether a stream says how many tokens there were.
    pub include_usage: bool,
}

impl Common {
    fn order(&self, prompts: Vec<Prompt>, max_tokens: Option<u32>) -> Result<Order> {
        let is_neutral = |value: Option<f64>| value.is_none_or(|value| value == 0.0);
        require(is_neutral(self.frequency_penalty), "frequency_penalty", "0")?;
        require(is_neutral(self.presence_penalty), "presence_penalty", "0")?;
        require(self.logit_bias.as_ref().is_none_or(BTreeMap::is_empty), "logit_bias", "empty")?;
        let n = self.n.unwrap_or(1);
        let count = prompts.len().saturating_mul(n as usize);
        let within = format!("so that there are 1 to {COMPLETIONS_MAX} completions");
        require((1..=COMPLETIONS_MAX).contains(&count), "n", &within)?;
        require(max_tokens.is_none_or(|n| n <= TOKENS_MAX), "max_tokens", "at most 1048576")?;
        let temperature = self.temperature.unwrap_or(1.0);
        require((0.0..=100.0).contains(&temperature), "temperature", "from 0 to 100")?;
        let top_p = self.top_p.unwrap_or(1.0);
        require(0.0 < top_p && top_p <= 1.0, "top_p", "above 0 and at most 1")?;
        let stop = match self.stop.clone() {
            None => Vec::new(),
            Some(OneOrMany::One(text)) => vec![text],
            Some(OneOrMany::Many(texts)) => texts,
        };
        let is_good = stop.len() <= STOPS_MAX && !stop.iter().any(String::is_empty);
        require(is_good, "stop", "at most 16 texts, none of them empty")?;
        let top_k = self.top_k.unwrap_or(0);
        let options = self.stream_options.unwrap_or_default();
        Ok(Order {
            prompts,
            drawing: Drawing { temperature, top_p, top_k, max_tokens, stop },
            n,
            seed: self.seed,
            logprobs: None,
            echo: false,
            stream: self.stream.unwrap_or(false),
            include_usage: options.include_usage.unwrap_or(false),
        })
    }
}

impl CompletionRequest {
    /// The request as it is served.
    pub fn order(self) -> Result<Order> {
        let prompts = match self.prompt {
            Prompts::Text(text) => vec![Prompt::Text(text)],
            Prompts::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
            Prompts::Ids(ids) => vec![Prompt::Ids(ids)],
            Prompts::IdLists(lists) => lists.into_iter().map(Prompt::Ids).collect(),
        };
        let echo = self.echo.unwrap_or(false);
        let max_tokens = self.max_tokens.unwrap_or(PLAIN_TOKENS);
        require(max_tokens > 0 || echo, "max_tokens", "at least 1, or 0 with `echo`")?;
        require(self.suffix.as_deref().is_none_or(str::is_empty), "suffix", "absent")?;
        require(self.logprobs.is_none_or(|n| n <= TOP_MAX), "logprobs", "at most 20")?;
        let order = self.common.order(prompts, Some(max_tokens))?;
        require(self.best_of.is_none_or(|n| n == order.n), "best_of", "the same as `n`")?;
        Ok(Order { logprobs: self.logprobs, echo, ..order })
    }
}

impl ChatRequest {
    /// The request as it is served.
    pub fn order(self) -> Result<Order> {
        require(!self.messages.is_empty(), "messages", "at least one message")?;
        let messages = self.messages.into_iter().map(ChatMessage::message);
        let prompts = vec![Prompt::Chat(messages.collect::<Result<_>>()?)];
        let is_text = |format: &Map<String, Value>| {
            format.get("type").is_none_or(|kind| kind.as_str() == Some("text"))
        };
        require(self.response_format.as_ref().is_none_or(is_text), "response_format", "text")?;
        require(self.tools.as_ref().is_none_or(Vec::is_empty), "tools", "empty")?;
        let max_tokens = self.max_completion_tokens.or(self.max_tokens);
        require(max_tokens != Some(0), "max_tokens", "at least 1")?;
        let top = self.top_logprobs.unwrap_or(0);
        require(top <= TOP_MAX, "top_logprobs", "at most 20")?;
        let wants = self.logprobs.unwrap_or(false);
        require(wants || top == 0, "top_logprobs", "absent without `logprobs`")?;
        let order = self.common.order(prompts, max_tokens)?;
        Ok(Order { logprobs: wants.then_some(top), ..order })
    }
}

impl ChatMessage {
    fn message(self) -> Result<Message> {
        let is_known = ["system", "developer", "user", "assistant"].contains(&self.role.as_str());
        require(is_known, "role", "system, developer, user or assistant")?;
        let role = if self.role == "developer" { "system".to_owned() } else { self.role };
        let content = match self.content {
            None => String::new(),
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => {
                require(parts.iter().all(|part| part.r#type == "text"), "content", "text only")?;
                parts.into_iter().filter_map(|part| part.text).collect()
            }
        };
        Ok(Message::new(role, content))
    }
}

fn require(is_good: bool, key: &str, must: &str) -> Result<()> {
    match is_good {
        true => Ok(()),
        false => Err(Error::input(format!("`{key}` must be {must}"), "change it, or leave it out")),
    }
}

/// Models.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelList {
    /// Always `list`.
    pub object: &'static str,
    /// The models.
    pub data: Vec<ModelObject>,
}

/// A model.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelObject {
    /// Its name: `RUN/STAGE`.
    pub id: String,
    /// Always `model`.
    pub object: &'static str,
    /// When its weights were written, in seconds since 1970.
    pub created: u64,
    /// Always `aha`.
    pub owned_by: &'static str,
}

/// Tokens, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Usage {
    /// Of the prompts.
    pub prompt_tokens: usize,
    /// Of the completions.
    pub completion_tokens: usize,
    /// Of both.
    pub total_tokens: usize,
}

/// Completions of a text.
#[derive(Debug, Serialize, ToSchema)]
pub struct CompletionAnswer {
    /// Its name.
    pub id: String,
    /// Always `text_completion`.
    pub object: &'static str,
    /// When it was asked for, in seconds since 1970.
    pub created: u64,
    /// The model.
    pub model: String,
    /// The completions.
    pub choices: Vec<TextChoice>,
    /// Tokens; in a stream in the last event alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// A completion.
#[derive(Debug, Serialize, ToSchema)]
pub struct TextChoice {
    /// Which: prompt by prompt.
    pub index: usize,
    /// The text.
    pub text: String,
    /// Log-probs, if they were wanted.
    pub logprobs: Option<TextLogprobs>,
    /// Why it ended: `stop` or `length`.
    pub finish_reason: Option<&'static str>,
}

/// Log-probs of a completion's tokens.
#[derive(Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct TextLogprobs {
    /// The tokens.
    pub tokens: Vec<String>,
    /// Their log-probs; null for the first token of a prompt.
    pub token_logprobs: Vec<Option<f32>>,
    /// The likeliest tokens in the place of each; null where none are wanted.
    pub top_logprobs: Option<Vec<Option<BTreeMap<String, f32>>>>,
    /// Where each token begins in the text, in characters.
    pub text_offset: Vec<usize>,
}

/// Answers in a conversation, or a piece of them.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatAnswer {
    /// Its name.
    pub id: String,
    /// `chat.completion`, or `chat.completion.chunk` in a stream.
    pub object: &'static str,
    /// When it was asked for, in seconds since 1970.
    pub created: u64,
    /// The model.
    pub model: String,
    /// The answers.
    pub choices: Vec<ChatChoice>,
    /// Tokens; in a stream in the last event alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// An answer.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct ChatChoice {
    /// Which.
    pub index: usize,
    /// What was said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<Said>,
    /// A piece of it, in a stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<Said>,
    /// Log-probs, if they were wanted.
    pub logprobs: Option<ChatLogprobs>,
    /// Why it ended: `stop` or `length`.
    pub finish_reason: Option<&'static str>,
}

/// What the model said.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct Said {
    /// Always `assistant`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// The text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// Log-probs of an answer's tokens.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct ChatLogprobs {
    /// One for each.
    pub content: Vec<TokenLogprob>,
}

/// A token's log-prob.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct TokenLogprob {
    /// The token's text; what is no text is shown as such.
    pub token: String,
    /// Its log-prob.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The likeliest tokens in its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(no_recursion)]
    pub top_logprobs: Option<Vec<TokenLogprob>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(text: &str) -> Result<Order> {
        serde_json::from_str::<ChatRequest>(text).unwrap().order()
    }

    fn plain(text: &str) -> Result<Order> {
        serde_json::from_str::<CompletionRequest>(text).unwrap().order()
    }

    #[test]
    fn what_clients_send_is_read() {
        let order = chat(
            r#"{"model":"1/zero","messages":[{"role":"developer","content":"be brief"},
               {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}],
               "max_completion_tokens":5,"max_tokens":9,"stop":"x","logprobs":true,"top_logprobs":2,"user":"me"}"#,
        )
        .unwrap();
        assert_eq!(order.drawing.max_tokens, Some(5));
        assert_eq!((order.drawing.stop, order.logprobs), (vec!["x".to_owned()], Some(2)));
        let Prompt::Chat(messages) = &order.prompts[0] else { panic!("{:?}", order.prompts) };
        assert_eq!(messages[0].role, "system");
        assert_eq!(messages[1].content, "ab");
        let order = plain(r#"{"model":"1","prompt":[[1,2],[3]],"n":2}"#).unwrap();
        assert_eq!((order.prompts.len(), order.n, order.drawing.max_tokens), (2, 2, Some(16)));
        let order =
            plain(r#"{"model":"1","prompt":"a","max_tokens":0,"echo":true,"logprobs":1}"#).unwrap();
        assert_eq!(
            (order.drawing.max_tokens, order.echo, order.logprobs),
            (Some(0), true, Some(1))
        );
    }

    #[test]
    fn what_would_be_ignored_and_matters_is_refused() {
        let user = r#""messages":[{"role":"user","content":"a"}]"#;
        for (text, key) in [
            (format!(r#"{{"model":"1",{user},"frequency_penalty":1}}"#), "frequency_penalty"),
            (format!(r#"{{"model":"1",{user},"logit_bias":{{"5":1}}}}"#), "logit_bias"),
            (format!(r#"{{"model":"1",{user},"tools":[{{}}]}}"#), "tools"),
            (
                format!(r#"{{"model":"1",{user},"response_format":{{"type":"json_object"}}}}"#),
                "response_format",
            ),
            (format!(r#"{{"model":"1",{user},"temperature":-1}}"#), "temperature"),
            (format!(r#"{{"model":"1",{user},"top_p":0}}"#), "top_p"),
            (format!(r#"{{"model":"1",{user},"n":0}}"#), "n"),
            (format!(r#"{{"model":"1",{user},"n":129}}"#), "n"),
            (format!(r#"{{"model":"1",{user},"stop":""}}"#), "stop"),
            (format!(r#"{{"model":"1",{user},"top_logprobs":2}}"#), "top_logprobs"),
            (r#"{"model":"1","messages":[]}"#.to_owned(), "messages"),
            (r#"{"model":"1","messages":[{"role":"tool","content":"a"}]}"#.to_owned(), "role"),
        ] {
            let error = chat(&text).unwrap_err();
            assert!(error.message.contains(&format!("`{key}` must be")), "{text}: {error}");
        }
        assert!(plain(r#"{"model":"1","prompt":"a","max_tokens":0}"#).is_err());
        assert!(plain(r#"{"model":"1","prompt":"a","best_of":3}"#).is_err());
        assert!(plain(r#"{"model":"1","prompt":[]}"#).is_err());
    }
}
