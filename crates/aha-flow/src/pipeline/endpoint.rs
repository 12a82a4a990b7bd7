//! A server that writes completions in a model's place.

use aha_reward::wait::client;

use super::local::name_of;
use super::reader::{choice, section, section_fields};

choice! {
    /// How a server is asked.
    pub enum Api {
        /// As a chat, at `URL/chat/completions`: the prompt is one user message, and the server applies its model's
        /// chat template.
        Chat = "chat",
        /// As plain text, at `URL/completions`.
        Completions = "completions",
    }
}

section! {
    /// An OpenAI-compatible server. It is asked once for each completion, and tried again where that may help. What it
    /// gave is kept in `asked/TABLE/` of the run directory until it is in the table: a run that goes on asks nothing
    /// twice. A completion that it refuses, or that can't be had, is in the table `TABLE_set_aside` with the error;
    /// where that happens to more than half of 64 prompts' completions and the server didn't refuse them, the stage
    /// stops. A reasoning that the server gives apart from the answer (`reasoning_content` or `reasoning`) is put
    /// before it, in `<think>` and `</think>`.
    pub struct Endpoint {
        /// The address, such as `https://host/v1`; what is secret in it would be in the run's files.
        pub url: String;
        /// The model's name there.
        pub model: String, "not empty" |name| !name.is_empty();
        /// How it is asked.
        pub api: Api = Api::Chat;
        /// A system message before the prompt; with `api = "chat"` only.
        pub system: Option<String> = None;
        /// Whether the ids of tokens and their log-probs are asked for (`return_token_ids` and `logprobs`, as vLLM has
        /// them) and stored; log-probs are the server's, with whatever temperature it computes them at. Without, the
        /// lists in the table are empty, and `completion_len_tokens` is what the server's `usage` says, or 0.
        pub token_ids: bool = false;
        /// Whether each completion's seed, drawn from the run's, is sent: some servers then give the same again.
        pub sends_seed: bool = true;
        /// The NAME of an environment variable that holds the key, which is sent as a bearer token. The key itself is
        /// in no file and no message, also where the server repeats it, if it has 8 characters or more. Absent: no
        /// key.
        @neutral
        pub api_key_env: Option<String> = None;
        /// Whether the proxy counts that the environment names (`HTTPS_PROXY` and its like).
        @neutral
        pub use_proxy: bool = false;
        /// Calls under way at once, from 1 to 1024. As many more wait for their turn.
        @neutral
        pub parallel_max: u32 = 16;
        /// Time of one call in seconds, above 0, at most a day.
        @neutral
        pub call_seconds_max: f64 = 600.0;
        /// Tries after the first, at most, from 0 to 100: for time-outs, broken connections, answers that can't be
        /// read and the statuses 408, 425, 429 and 5xx. The pause doubles from half a second to 30 s, or is what
        /// `Retry-After` says; then no call is begun before it is over.
        @neutral
        pub retries_max: u32 = 10;
        /// Time of all tries and pauses for a completion in seconds, above 0, at most a day.
        @neutral
        pub total_seconds_max: f64 = 3600.0;
    }
}

section_fields!(Endpoint);

impl Endpoint {
    /// The part of its settings that rewards have as well.
    pub fn service(&self) -> client::Settings {
        client::Settings {
            url: Some(self.url.clone()),
            api_key_env: self.api_key_env.clone(),
            use_proxy: self.use_proxy,
            parallel_max: self.parallel_max as usize,
            call_seconds_max: self.call_seconds_max,
            retries_max: self.retries_max,
            total_seconds_max: self.total_seconds_max,
        }
    }

    /// What is asked, behind its address.
    pub fn path(&self) -> &'static str {
        match self.api {
            Api::Chat => "/chat/completions",
            Api::Completions => "/completions",
        }
    }

    /// What its model is called in tables: `deepseek_ai_deepseek_r1` for `deepseek-ai/DeepSeek-R1`.
    pub fn name(&self) -> String {
        name_of(&self.model)
    }

    /// The environment variable that holds its secret, where that isn't set.
    pub fn unset_variable(&self) -> Option<&str> {
        self.api_key_env.as_deref().filter(|name| std::env::var_os(name).is_none())
    }
}
