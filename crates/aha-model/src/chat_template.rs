//! Chat templates: a conversation as text, and which part of it the assistant wrote.
//!
//! Templates are Jinja, rendered as transformers renders them: `trim_blocks`, `lstrip_blocks`, a
//! trailing newline of the template dropped, Python's methods on strings and maps, `tojson` as
//! Python's `json.dumps`, `raise_exception`, `strftime_now`, `{% break %}`, `{% generation %}`.

mod generation;
mod python;

use std::ops::Range;
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Value};
use serde_json::{Map, Value as Json};

use crate::error::{Error, Result};
use crate::tokenizer::{SpecialToken, Tokenizer};

/// Work and memory that one rendering may use, in minijinja's unit (an instruction, or 64 bytes).
const FUEL_MAX: u64 = 4_000_000;
const SOURCE_BYTES_MAX: usize = 1 << 20;

/// Why a turn's part can't be found.
const PROMPTS_OTHERWISE: &str = "the template prompts for the turn in another way than it shows it";

/// The prompt as it is; the end-of-text token after the assistant's part.
const PLAIN: &str = "\
{%- for message in messages -%}
  {%- if message['role'] == 'assistant' -%}
    {%- generation -%}{{- message['content'] + (eos_token or '') -}}{%- endgeneration -%}
  {%- else -%}
    {{- message['content'] -}}
  {%- endif -%}
{%- endfor -%}";

/// R1-Zero's conversation: the base model is told to think, then to answer, inside tags.
const R1_ZERO: &str = "\
{%- for message in messages -%}
  {%- if message['role'] == 'assistant' -%}
    {%- generation -%}{{- message['content'] + (eos_token or '') -}}{%- endgeneration -%}
  {%- elif message['role'] == 'system' -%}
    {{- message['content'] + '\\n\\n' -}}
  {%- else -%}
    {{- 'The User and the Assistant talk. The User asks, the Assistant solves. Before it answers, \
the Assistant thinks the problem through, step by step. It writes its thoughts between <think> and \
</think> and its final answer between <answer> and </answer>, like this: <think> the thoughts \
</think> <answer> the answer </answer>\\n\\nUser: ' + message['content'] + '\\nAssistant:' -}}
  {%- endif -%}
{%- endfor -%}";

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
    /// Further fields that a template may read, such as `name` and `tool_calls`.
    pub more: Map<String, Json>,
}

impl Message {
    /// A turn.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: content.into(), more: Map::new() }
    }

    /// Whether the assistant said it.
    pub fn is_assistants(&self) -> bool {
        self.role == "assistant"
    }

    /// As a template sees it.
    fn value(&self) -> Value {
        let more = self.more.iter().map(|(key, value)| (key.as_str(), value_of(value)));
        let own = [("role", Value::from(&*self.role)), ("content", Value::from(&*self.content))];
        Value::from_pairs(own.into_iter().chain(more))
    }
}

/// JSON as a template's value.
fn value_of(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (None, Some(number)) => Value::from(number),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(list) => list.iter().map(value_of).collect(),
        Json::Object(map) => {
            Value::from_pairs(map.iter().map(|(key, value)| (key.as_str(), value_of(value))))
        }
    }
}

/// A conversation as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// Bytes of `text` that the assistant has to write, its end-of-turn token included.
    pub assistant_spans: Vec<Range<usize>>,
    /// Why some of the assistant's turns have no span, if so: the template renders a turn in
    /// another way once others follow, or in another way than it prompts for.
    pub mask_problem: Option<String>,
    /// Whether the text is to be encoded with the tokenizer's own special tokens around it. A
    /// model's chat template spells them out, the built-in ones don't.
    pub add_special: bool,
}

/// A compiled template with the special tokens it may use.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    source: Arc<str>,
    bos: Option<SpecialToken>,
    eos: Option<SpecialToken>,
    pad: Option<SpecialToken>,
    has_generation_tags: bool,
    add_special: bool,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("source", &self.source).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Compiles a template.
    pub fn new(
        source: &str,
        bos: Option<&SpecialToken>,
        eos: Option<&SpecialToken>,
        pad: Option<&SpecialToken>,
    ) -> Result<Self> {
        if source.len() > SOURCE_BYTES_MAX {
            return Err(Error::input(format!(
                "the chat template has {} bytes: expected at most {SOURCE_BYTES_MAX}",
                source.len()
            )));
        }
        let (translated, has_generation_tags) = generation::translate(source);
        let mut environment = Environment::new();
        let syntax =
            SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(
                |error| Error::Bug(format!("the template syntax is inconsistent: {error}")),
            )?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL_MAX));
        python::install(&mut environment);
        generation::install(&mut environment);
        environment
            .add_template_owned("chat", translated)
            .map_err(|error| template_error("the chat template is not valid Jinja", error))?;
        Ok(ChatTemplate {
            environment: Arc::new(environment),
            source: source.into(),
            bos: bos.cloned(),
            eos: eos.cloned(),
            pad: pad.cloned(),
            has_generation_tags,
            add_special: false,
        })
    }

    /// The template of that name: `chat` (the model's own), `r1-zero` or `plain`.
    pub fn named(name: &str, tokenizer: &Tokenizer) -> Result<Self> {
        let source = match name {
            "plain" => PLAIN,
            "r1-zero" => R1_ZERO,
            "chat" => {
                return tokenizer.chat_template().cloned().ok_or_else(|| {
                    Error::input("the model has no chat template")
                        .hint("use the template `r1-zero`, or the prompt as it is")
                });
            }
            other => {
                return Err(Error::input(format!(
                    "template `{other}` is unknown: expected chat, r1-zero or plain"
                )));
            }
        };
        let (bos, eos, pad) = (tokenizer.bos(), tokenizer.eos(), tokenizer.pad());
        Ok(ChatTemplate { add_special: true, ..ChatTemplate::new(source, bos, eos, pad)? })
    }

    /// The template's source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders the prompt of a single question, ready for the assistant to go on.
    pub fn render_prompt(&self, prompt: &str) -> Result<Rendered> {
        self.render(&[Message::new("user", prompt)], true)
    }

    /// Renders a conversation and finds the assistant's parts.
    ///
    /// A template with `{% generation %}` tags says itself what they are. For any other, a turn's
    /// part is what the rendering with the turn adds to the rendering that prompts for it.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Rendered> {
        let (text, tagged) = self.render_once(messages, add_generation_prompt)?;
        let (assistant_spans, mask_problem) = if self.has_generation_tags {
            (tagged, None)
        } else {
            self.spans_by_prefix(messages, &text)
        };
        let add_special = self.add_special;
        Ok(Rendered { text, assistant_spans, mask_problem, add_special })
    }

    /// Renders a conversation of which the model has to write only `turns`: places in `messages`, in their
    /// order, of turns of the assistant.
    ///
    /// A turn's part is found as by [`ChatTemplate::render`]. The rendering up to a turn has to be the beginning
    /// of the whole: elsewhere the model would learn to answer to another text than it is asked with.
    pub fn render_turns(&self, messages: &[Message], turns: &[usize]) -> Result<Rendered> {
        let (text, tagged) = self.render_once(messages, false)?;
        let (assistant_spans, mask_problem) = if self.has_generation_tags {
            collect_spans(turns, |idx| self.tagged_span(messages, idx, &text, &tagged))
        } else {
            collect_spans(turns, |idx| self.turn_span(messages, idx, &text))
        };
        Ok(Rendered { text, assistant_spans, mask_problem, add_special: self.add_special })
    }

    fn spans_by_prefix(
        &self,
        messages: &[Message],
        text: &str,
    ) -> (Vec<Range<usize>>, Option<String>) {
        let turns: Vec<usize> =
            (0..messages.len()).filter(|&idx| messages[idx].is_assistants()).collect();
        collect_spans(&turns, |idx| self.turn_span(messages, idx, text))
    }

    fn turn_span(
        &self,
        messages: &[Message],
        turn_idx: usize,
        text: &str,
    ) -> Result<Range<usize>, String> {
        let before = self.prefix(messages, turn_idx, true)?;
        let after = self.prefix(messages, turn_idx + 1, false)?;
        if !after.starts_with(&before) {
            return Err(PROMPTS_OTHERWISE.to_owned());
        }
        if !text.starts_with(&after) {
            return Err("the template shows the turn in another way once others follow it".into());
        }
        Ok(before.len()..before.len() + self.up_to_eos(&after[before.len()..]))
    }

    /// What the template itself marks as the turn.
    fn tagged_span(
        &self,
        messages: &[Message],
        turn_idx: usize,
        text: &str,
        tagged: &[Range<usize>],
    ) -> Result<Range<usize>, String> {
        let turns = |messages: &[Message]| messages.iter().filter(|m| m.is_assistants()).count();
        let (turn_count, span_count) = (turns(messages), tagged.len());
        if turn_count != span_count {
            return Err(format!(
                "the template marks {span_count} parts as the assistant's, of {turn_count} turns"
            ));
        }
        if !text.starts_with(&self.prefix(messages, turn_idx, true)?) {
            return Err(PROMPTS_OTHERWISE.to_owned());
        }
        let span = tagged.get(turns(&messages[..turn_idx]));
        span.cloned().ok_or_else(|| "the template doesn't mark it as the assistant's".to_owned())
    }

    /// The rendering of the first messages.
    fn prefix(&self, messages: &[Message], count: usize, prompts: bool) -> Result<String, String> {
        let rendered = self.render_once(&messages[..count], prompts);
        rendered.map(|(text, _)| text).map_err(|error| error.to_string())
    }

    /// Length of a turn without the white space that the template puts after its end-of-turn
    /// token: a sampler stops at that token.
    fn up_to_eos(&self, turn: &str) -> usize {
        let trimmed = turn.trim_end();
        match &self.eos {
            Some(eos) if trimmed.ends_with(&eos.text) => trimmed.len(),
            _ => turn.len(),
        }
    }

    fn render_once(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<(String, Vec<Range<usize>>)> {
        let more: Vec<String> =
            messages.iter().flat_map(|m| m.more.values()).map(Json::to_string).collect();
        let contents = messages.iter().map(|message| message.content.as_str());
        let marks = generation::Marks::absent_from(
            contents.chain(more.iter().map(String::as_str)).chain([&*self.source]),
        )?;
        let token = |token: &Option<SpecialToken>| match token {
            Some(token) => Value::from(token.text.as_str()),
            None => Value::UNDEFINED,
        };
        let message_values: Value = messages.iter().map(Message::value).collect();
        let context = Value::from_pairs([
            ("messages", message_values),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            ("bos_token", token(&self.bos)),
            ("eos_token", token(&self.eos)),
            ("pad_token", token(&self.pad)),
            (generation::MARKS, marks.value()),
        ]);
        let template = self
            .environment
            .get_template("chat")
            .map_err(|error| Error::Bug(format!("the compiled template is gone: {error}")))?;
        let text = template
            .render(context)
            .map_err(|error| template_error("the chat template failed", error))?;
        marks.extract(&text)
    }
}

/// The spans of turns, without those that have a problem, and the first problem with its place.
fn collect_spans(
    turns: &[usize],
    span: impl Fn(usize) -> Result<Range<usize>, String>,
) -> (Vec<Range<usize>>, Option<String>) {
    let (mut spans, mut problem) = (Vec::new(), None);
    for &idx in turns {
        match span(idx) {
            Ok(span) => spans.push(span),
            Err(why) => problem = problem.or(Some(format!("messages[{idx}]: {why}"))),
        }
    }
    (spans, problem)
}

fn template_error(what: &str, error: minijinja::Error) -> Error {
    let line = error.line().map(|line| format!(" at line {line}")).unwrap_or_default();
    let detail = error.detail().map(|detail| format!(": {detail}")).unwrap_or_default();
    Error::input(format!("{what}{line}{detail}")).caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: &str) -> ChatTemplate {
        let eos = SpecialToken { id: 2, text: "<|end|>".into() };
        ChatTemplate::new(source, None, Some(&eos), None).unwrap()
    }

    fn conversation() -> Vec<Message> {
        vec![
            Message::new("user", "Hi"),
            Message::new("assistant", "Hello, é!"),
            Message::new("user", "2+2?"),
            Message::new("assistant", "4"),
        ]
    }

    fn spans(rendered: &Rendered) -> Vec<&str> {
        rendered.assistant_spans.iter().map(|span| &rendered.text[span.clone()]).collect()
    }

    const CHATML: &str = "{% for m in messages %}\
         {{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>\n' }}\
         {% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

    #[test]
    fn spans_of_a_template_without_tags_are_the_turns_up_to_their_end_token() {
        let rendered = template(CHATML).render(&conversation(), false).unwrap();
        assert_eq!(spans(&rendered), ["Hello, é!<|end|>", "4<|end|>"]);
        assert_eq!(rendered.mask_problem, None);
    }

    #[test]
    fn a_template_that_rewrites_old_turns_is_reported() {
        let source = "{% for m in messages %}\
             {% if m.role == 'assistant' and not loop.last %}<|assistant|>…\
             {% else %}<|{{ m.role }}|>{{ m.content }}{% endif %}\
             {% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";
        let rendered = template(source).render(&conversation(), false).unwrap();
        assert_eq!(spans(&rendered), ["4"]);
        let problem = rendered.mask_problem.unwrap();
        assert!(problem.starts_with("messages[1]: the template shows"), "{problem}");
        // The last turn alone can be learned.
        let rendered = template(source).render_turns(&conversation(), &[3]).unwrap();
        assert_eq!((spans(&rendered), &rendered.mask_problem), (vec!["4"], &None));
    }

    #[test]
    fn chosen_turns_are_found_with_and_without_tags() {
        let tagged = "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}\
             {% generation %}{{ m.content }}<|end|>{% endgeneration %}{% else %}{{ m.content }}<|end|>\
             {% endif %}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";
        for source in [CHATML, tagged] {
            let chosen = |turns: &[usize]| template(source).render_turns(&conversation(), turns);
            for (turns, expected) in [
                (&[1, 3][..], vec!["Hello, é!<|end|>", "4<|end|>"]),
                (&[1], vec!["Hello, é!<|end|>"]),
                (&[3], vec!["4<|end|>"]),
                (&[], vec![]),
            ] {
                let rendered = chosen(turns).unwrap();
                assert_eq!((spans(&rendered), &rendered.mask_problem), (expected, &None));
            }
        }
        // A template that asks otherwise than it shows, and one that marks what the assistant didn't say.
        let otherwise = tagged.replace("{% if add_gen", "!{% if add_gen");
        let rendered = template(&otherwise).render_turns(&conversation(), &[1]).unwrap();
        assert_eq!(rendered.mask_problem.unwrap(), format!("messages[1]: {PROMPTS_OTHERWISE}"));
        let all = tagged.replace("m.role == 'assistant'", "true");
        let rendered = template(&all).render_turns(&conversation(), &[1]).unwrap();
        assert!(rendered.mask_problem.unwrap().contains("marks 4 parts"), "{:?}", rendered.text);
    }

    #[test]
    fn templates_read_further_fields_of_a_message() {
        let source = "{% for m in messages %}{{ m.name }}{% for c in m.tool_calls or [] %}\
             {{ c.function | tojson }}{% endfor %}{{ m.content }}{% endfor %}";
        let mut message = Message::new("assistant", "");
        let call =
            serde_json::json!([{"function": {"name": "add", "arguments": {"b": 1, "a": 2}}}]);
        message.more.insert("tool_calls".to_owned(), call);
        message.more.insert("name".to_owned(), "n:".into());
        let text = template(source).render(&[message], false).unwrap().text;
        assert_eq!(text, r#"n:{"name": "add", "arguments": {"b": 1, "a": 2}}"#);
    }

    #[test]
    fn generation_tags_are_transparent_and_give_the_spans() {
        let tagged = "{%- for m in messages %}\n    {%- if m.role == 'assistant' %}\n        \
             {%- generation %}\n{{ m.content }}<|end|>\n        {%- endgeneration %}\n    \
             {%- else %}\n        {{- m.content }}\n    {%- endif %}\n{%- endfor %}";
        let plain = tagged.replace("generation %}", "if true %}").replace("endif true", "endif");
        let rendered = template(tagged).render(&conversation(), false).unwrap();
        assert_eq!(spans(&rendered), ["Hello, é!<|end|>", "4<|end|>"]);
        assert_eq!(rendered.text, template(&plain).render(&conversation(), false).unwrap().text);
    }

    #[test]
    fn exceptions_carry_their_message() {
        let error = template("{{ raise_exception('no system turns') }}").render(&[], false);
        assert!(error.unwrap_err().to_string().contains("no system turns"));
    }

    #[test]
    fn endless_templates_are_stopped() {
        let loops =
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
        assert!(template(loops).render(&[], false).is_err());
        assert!(template("{{ 'ab' * 9999999999 }}").render(&[], false).is_err());
    }

    #[test]
    fn python_prints_as_python() {
        let cases = [
            (
                "{{ {'a': [1, 2.5, none, true], 'b': '<é\"\\n'}|tojson }}",
                r#"{"a": [1, 2.5, null, true], "b": "<é\"\n"}"#,
            ),
            ("{{ [1, {'k': []}]|tojson(indent=2) }}", "[\n  1,\n  {\n    \"k\": []\n  }\n]"),
            ("{{ ' a b '.strip().split(' ')[-1] }}", "b"),
            ("{% for k, v in {'x': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "x1"),
            ("{{ true }} {{ none }}", "True None"),
            ("{{ tools is none }} {{ nothing is defined }}", "True False"),
            ("a\n", "a"),
            ("  {% if true %}\nb\n  {% endif %}\nc", "b\nc"),
            (
                "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}",
                "01",
            ),
        ];
        for (source, expected) in cases {
            let text = template(source).render(&[], false).unwrap().text;
            assert_eq!(text, expected, "{source}");
        }
    }
}
