//! Settings that several kinds of stage share: drawing tokens, the optimizer, the prompt template.

use aha_compute::WeightForm;
use aha_compute::ops::adamw::StatePlace;

use super::reader::{Field, Reader, Word, choice, section, section_fields};
use super::source::{Node, Value};
use super::write::Out;

choice! {
    /// What weights are multiplied as while tokens are drawn.
    pub enum SamplingWeights {
        /// As the learner multiplies them.
        Same = "same",
        /// As int8 with a scale for each output: a quarter of the bytes of `f32` to read, and other log-probs than
        /// the learner's.
        Int8 = "int8",
    }
}

impl From<SamplingWeights> for WeightForm {
    fn from(weights: SamplingWeights) -> WeightForm {
        match weights {
            SamplingWeights::Same => WeightForm::Same,
            SamplingWeights::Int8 => WeightForm::Int8,
        }
    }
}

impl From<WeightForm> for SamplingWeights {
    fn from(weights: WeightForm) -> SamplingWeights {
        match weights {
            WeightForm::Same => SamplingWeights::Same,
            WeightForm::Int8 => SamplingWeights::Int8,
        }
    }
}

/// Beyond these bounds `f32` has no number that logits could be divided by.
pub(super) fn is_temperature(t: &f64) -> bool {
    *t == 0.0 || (1e-6..=1e6).contains(t)
}

section! {
    /// How tokens are drawn.
    pub struct Sampling {
        /// Logits are divided by it before the softmax; 0 takes the likeliest token. At 1 the
        /// sampled distribution is the policy.
        pub temperature: f64 = 1.0, "0, or from 1e-6 to 1e6" is_temperature;
        /// Smallest set of likeliest tokens whose probability reaches this share; 1 keeps all.
        pub top_p: f64 = 1.0, "from 1e-6 to 1" |p| (1e-6..=1.0).contains(p);
        /// Number of likeliest tokens to draw from; 0 keeps all.
        pub top_k: u32 = 0;
        /// Tokens of a completion, at most; a longer one is cut and counts as truncated.
        pub max_tokens: u32 = 256, "at least 1" |n| *n >= 1;
        /// Texts that end a completion, besides the model's own end token.
        pub stop: Vec<String> = Vec::new(), "without empty texts" |s| !s.iter().any(String::is_empty);
        /// Token ids that end a completion, besides the model's own end token.
        pub stop_token_ids: Vec<u32> = Vec::new();
        /// What weights are multiplied as while tokens are drawn. With `int8` a decoding step reads less. In a stage
        /// `rl` sampler and learner then don't compute the same log-probs: the learner computes its own, and weights
        /// each token by how far they are apart, up to `objective.importance_cap`.
        pub weights: SamplingWeights = SamplingWeights::Same;
    }
}

section! {
    /// Budget forcing (s1, Muennighoff et al. 2025): how long the model thinks ahead of its answer. A completion
    /// begins with thinking, which ends where the text `end` is complete. An end that comes too early is taken
    /// back, and `wait` takes its place; so is a stop token or a stop text that comes instead of it. Thinking that
    /// has used up its tokens is closed by `close`, in place of an end that is half written. What was put in is
    /// marked in the column `completion_forced_mask`, and has log-probs as what was drawn.
    pub struct Thinking {
        /// The text that ends the thinking, whether it is one token or several.
        pub end: String = "</think>".to_owned(), "not empty" |text| !text.is_empty();
        /// Tokens of thinking below which an end is taken back; less than `max_tokens` of the completion.
        pub min_tokens: u32 = 0;
        /// Tokens of thinking, at most, what was put in included and the end not; below `max_tokens` of the
        /// completion, so that an answer fits. 0 answers at once. Absent: as many as fit.
        pub max_tokens: Option<u32> = None;
        /// Ends that are taken back in each completion, however many tokens there are. One stays where no token
        /// would be left to think with.
        pub waits: u32 = 0;
        /// What takes the place of an end that is taken back; without `end` in it.
        pub wait: String = "Wait".to_owned(), "not empty" |text| !text.is_empty();
        /// What closes thinking that has used up its tokens, such as `"</think>\n<answer>"`. Absent: `end`.
        pub close: Option<String> = None, "not empty" |text| text.as_ref().is_none_or(|t| !t.is_empty());
    }
}

impl Thinking {
    /// As the sampler takes it.
    pub fn resolved(&self) -> aha_sample::Thinking {
        aha_sample::Thinking {
            end: self.end.clone(),
            min_tokens: self.min_tokens as usize,
            max_tokens: self.max_tokens.map(|most| most as usize),
            waits: self.waits as usize,
            wait: self.wait.clone(),
            close: self.close.as_ref().unwrap_or(&self.end).clone(),
        }
    }
}

choice! {
    /// What happens to groups that would be too old when they arrive.
    pub enum OnStale {
        /// They are left out: steps go on without them, and the table has them as `stale`.
        Drop = "drop",
        /// Steps wait for them.
        Wait = "wait",
    }
}

choice! {
    /// How the learning rate moves after the warm-up.
    pub enum ScheduleKind {
        /// It stays.
        Constant = "constant",
        /// A line down to `min_lr` at the last step.
        Linear = "linear",
        /// Half a cosine down to `min_lr` at the last step.
        Cosine = "cosine",
    }
}

section! {
    /// Learning rate by step.
    pub struct Schedule {
        /// The curve after the warm-up.
        pub kind: ScheduleKind = ScheduleKind::Constant;
        /// Optimizer steps over which the rate rises in a line from 0 to `lr`.
        pub warmup_steps: u64 = 0;
        /// Where a falling schedule ends.
        pub min_lr: f64 = 0.0, "at least 0" |lr| *lr >= 0.0;
    }
}

choice! {
    /// Where the optimizer's state is.
    pub enum OptimizerState {
        /// In the memory of the device that has the weights.
        Device = "device",
        /// In the host's memory: each step takes it to the CUDA device in slices and back. Slower, with the same bits.
        Host = "host",
    }
}

impl From<OptimizerState> for StatePlace {
    fn from(state: OptimizerState) -> StatePlace {
        match state {
            OptimizerState::Device => StatePlace::Device,
            OptimizerState::Host => StatePlace::Host,
        }
    }
}

section! {
    /// AdamW: `m = b1 m + (1-b1) g`, `v = b2 v + (1-b2) g^2`,
    /// `w -= lr (m^ / (sqrt(v^) + eps) + weight_decay w)` with bias-corrected `m^` and `v^`.
    pub struct Optimizer {
        /// Learning rate. R1-Zero's is 3e-6; small models made from nothing want 1e-4 to 3e-3.
        pub lr: f64 = 3e-6, "above 0" |lr| *lr > 0.0;
        /// Decay of the two moments.
        pub betas: [f64; 2] = [0.9, 0.999], "two numbers in [0, 1)" |b| b.iter().all(|b| *b >= 0.0 && *b < 1.0);
        /// Added to the root of the second moment.
        pub eps: f64 = 1e-8, "above 0" |eps| *eps > 0.0;
        /// Decoupled weight decay; norms and biases are spared.
        pub weight_decay: f64 = 0.0, "at least 0" |w| *w >= 0.0;
        /// How the rate moves.
        pub schedule: Schedule = Schedule::default();
        /// Where the two moments are, eight bytes for each weight that is trained. With `host` a CUDA device has room
        /// for as many more weights or activations; where the processor computes it changes nothing.
        @neutral
        pub state: OptimizerState = OptimizerState::Device;
    }
}

section_fields!(Sampling, Thinking, Schedule, Optimizer);

/// How a prompt becomes the model's input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Template {
    /// The prompt as it is.
    #[default]
    Raw,
    /// R1-Zero's conversation between User and Assistant, with think and answer tags.
    R1Zero,
    /// The model's own chat template, the prompt as one user message.
    Chat,
    /// Text of the pipeline with `{prompt}` in it.
    Text(String),
}

const TEMPLATES: [Word; 3] = [
    ("raw", "The prompt as it is."),
    ("r1-zero", "R1-Zero's conversation between User and Assistant, with think and answer tags."),
    ("chat", "The model's own chat template, the prompt as one user message."),
];

impl Template {
    /// As a pipeline file has it.
    pub fn text(&self) -> &str {
        match self {
            Template::Raw => "raw",
            Template::R1Zero => "r1-zero",
            Template::Chat => "chat",
            Template::Text(text) => text,
        }
    }

    /// What a pipeline file means by a text; none for one that is no template.
    pub fn of_text(text: &str) -> Option<Template> {
        match text {
            "raw" => Some(Template::Raw),
            "r1-zero" => Some(Template::R1Zero),
            "chat" => Some(Template::Chat),
            _ => (text.matches("{prompt}").count() == 1).then(|| Template::Text(text.to_owned())),
        }
    }
}

impl Field for Template {
    fn expects() -> String {
        "\"raw\", \"r1-zero\", \"chat\", or a text with {prompt} in it".into()
    }
    fn words() -> Vec<Word> {
        TEMPLATES.to_vec()
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>, base: Self) -> Self {
        let Value::String(text) = &node.value else {
            reader.wrong_type(node, path, &Self::expects());
            return base;
        };
        if let Some(template) = Template::of_text(text) {
            return template;
        }
        let hint = super::problem::nearest(text, TEMPLATES.map(|(name, _)| name))
            .map(|name| format!("did you mean \"{name}\"?"));
        let message = match text.matches("{prompt}").count() {
            0 => format!("`{path}` must be {}, got \"{text}\"", Self::expects()),
            count => format!("`{path}` must hold {{prompt}} once, got it {count} times"),
        };
        reader.report(node.span, path, message, hint);
        base
    }
    fn write(&self) -> Option<Out> {
        Some(Out::string(self.text()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_a_model_thinks_is_handed_on_key_by_key() {
        let thinking = Thinking {
            end: "</t>".to_owned(),
            min_tokens: 3,
            max_tokens: Some(9),
            waits: 2,
            wait: "Hm".to_owned(),
            close: Some("so</t>".to_owned()),
        };
        let expected = aha_sample::Thinking {
            end: "</t>".to_owned(),
            min_tokens: 3,
            max_tokens: Some(9),
            waits: 2,
            wait: "Hm".to_owned(),
            close: "so</t>".to_owned(),
        };
        assert_eq!(thinking.resolved(), expected);
        let open = Thinking { max_tokens: None, close: None, ..thinking };
        assert_eq!((open.resolved().max_tokens, open.resolved().close), (None, "</t>".to_owned()));
    }
}
