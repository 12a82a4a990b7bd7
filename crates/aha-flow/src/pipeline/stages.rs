//! `[[stage]]`: the kinds of stage and their settings.

use aha_learn::objective::Objective;
use aha_learn::preset::Preset;

use super::auto::Auto;
use super::benchmark::Benchmark;
use super::endpoint::Endpoint;
use super::lora::Lora;
use super::models::ModelSource;
use super::reader::{choice, section, section_fields};
use super::rewards::Reward;
use super::run::Run;
use super::sampling::{
    OnStale, Optimizer, Sampling, SamplingWeights, Schedule, ScheduleKind, Template, Thinking,
    is_temperature,
};
use super::values::{ByteSize, Names, Sql, Weights};
use super::watchdogs::{NanWatchdog, SftWatchdogs, Watchdogs};

/// A pipeline as it runs: every default filled in, every name known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pipeline {
    /// What holds for every stage.
    pub run: Run,
    /// Models by name, in the order of the file.
    pub models: Vec<(String, ModelSource)>,
    /// Input tables by name: a path, a folder or a glob.
    pub tables: Vec<(String, String)>,
    /// Stages in the order they run.
    pub stages: Vec<Stage>,
}

impl Pipeline {
    /// The stage of that name.
    pub fn stage(&self, name: &str) -> Option<&Stage> {
        self.stages.iter().find(|stage| stage.name == name)
    }

    /// The model of that name, among those the pipeline starts from.
    pub fn model(&self, name: &str) -> Option<&ModelSource> {
        self.models.iter().find(|(known, _)| known == name).map(|(_, source)| source)
    }
}

/// One named step.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// Its name, and that of the table and the model it makes.
    pub name: String,
    /// One line for the plan and the report.
    pub description: String,
    /// What it does.
    pub kind: StageKind,
}

/// What a stage does.
#[derive(Clone, Debug, PartialEq)]
pub enum StageKind {
    /// Supervised fine-tuning.
    Sft(Box<SftStage>),
    /// Training of a reward model.
    RewardModel(Box<RewardModelStage>),
    /// Direct preference optimization.
    Dpo(Box<DpoStage>),
    /// Reinforcement learning.
    Rl(Box<RlStage>),
    /// Sampling of completions.
    Sample(Box<SampleStage>),
    /// A query whose result is a table.
    Query(QueryStage),
    /// Evaluation of models.
    Eval(Box<EvalStage>),
    /// A model written out.
    Export(ExportStage),
}

impl EvalStage {
    /// The name of the table with a model's completions.
    pub fn completions(stage: &str, model: &str) -> String {
        format!("{stage}_{model}")
    }

    /// Its models of the pipeline.
    pub fn models(&self) -> &[String] {
        self.model.as_ref().map_or(&[], |names| &names.0)
    }

    /// The names of all that it evaluates: its models, then its endpoint's.
    pub fn subjects(&self) -> Vec<String> {
        let endpoint = self.endpoint.as_ref().map(Endpoint::name);
        self.models().iter().cloned().chain(endpoint).collect()
    }
}

impl StageKind {
    /// The word of the file.
    pub fn word(&self) -> &'static str {
        match self {
            StageKind::Sft(_) => "sft",
            StageKind::RewardModel(_) => "reward-model",
            StageKind::Dpo(_) => "dpo",
            StageKind::Rl(_) => "rl",
            StageKind::Sample(_) => "sample",
            StageKind::Query(_) => "query",
            StageKind::Eval(_) => "eval",
            StageKind::Export(_) => "export",
        }
    }

    /// Whether the stage makes a model of its name.
    pub fn is_training(&self) -> bool {
        matches!(
            self,
            StageKind::Sft(_) | StageKind::RewardModel(_) | StageKind::Dpo(_) | StageKind::Rl(_)
        )
    }

    /// The low-rank adapters that it trains, if it does.
    pub fn lora(&self) -> Option<&Lora> {
        match self {
            StageKind::Sft(stage) => stage.lora.as_ref(),
            StageKind::RewardModel(stage) => stage.lora.as_ref(),
            StageKind::Dpo(stage) => stage.lora.as_ref(),
            StageKind::Rl(stage) => stage.lora.as_ref(),
            StageKind::Sample(_)
            | StageKind::Query(_)
            | StageKind::Eval(_)
            | StageKind::Export(_) => None,
        }
    }

    /// The rewards that score its completions; of an `eval` stage the verifier, then what ranks.
    pub fn rewards(&self) -> Vec<&Reward> {
        match self {
            StageKind::Rl(stage) => stage.rewards.iter().collect(),
            StageKind::Sample(stage) => stage.rewards.iter().collect(),
            StageKind::Eval(stage) => {
                std::iter::once(&stage.reward).chain(&stage.rank_by).collect()
            }
            StageKind::Sft(_)
            | StageKind::RewardModel(_)
            | StageKind::Dpo(_)
            | StageKind::Query(_)
            | StageKind::Export(_) => Vec::new(),
        }
    }

    /// The server that it asks.
    pub fn endpoint(&self) -> Option<&Endpoint> {
        match self {
            StageKind::Sample(stage) => stage.endpoint.as_ref(),
            StageKind::Eval(stage) => stage.endpoint.as_ref(),
            StageKind::Sft(_)
            | StageKind::RewardModel(_)
            | StageKind::Dpo(_)
            | StageKind::Rl(_)
            | StageKind::Query(_)
            | StageKind::Export(_) => None,
        }
    }

    /// The name of the model that its critic starts from.
    pub fn critic(&self) -> Option<&str> {
        let StageKind::Rl(stage) = self else { return None };
        let critic = stage.critic.as_ref()?;
        Some(critic.model.as_ref().unwrap_or(&stage.model))
    }

    /// The environment variables that hold secrets of the stage and are not set, each with who needs it.
    pub fn unset_variables(&self) -> Vec<(&'static str, &str)> {
        let endpoint = self.endpoint().and_then(Endpoint::unset_variable);
        let rewards = self.rewards().into_iter().filter_map(Reward::unset_variable);
        let rewards = rewards.map(|name| ("a reward", name));
        endpoint.map(|name| ("the endpoint", name)).into_iter().chain(rewards).collect()
    }

    /// The key and names of the models that the stage starts from.
    pub fn models(&self) -> &[String] {
        use std::slice::from_ref;
        match self {
            StageKind::Sft(stage) => from_ref(&stage.model),
            StageKind::RewardModel(stage) => from_ref(&stage.model),
            StageKind::Dpo(stage) => from_ref(&stage.model),
            StageKind::Rl(stage) => from_ref(&stage.model),
            StageKind::Sample(stage) => stage.model.as_slice(),
            StageKind::Query(_) => &[],
            StageKind::Eval(stage) => stage.models(),
            StageKind::Export(stage) => from_ref(&stage.model),
        }
    }

    /// The model that is asked about the tokens of the one that learns, and the key that names it.
    pub fn guide(&self) -> Option<(&'static str, &str)> {
        match self {
            StageKind::Dpo(stage) => Some(("reference", stage.reference.as_deref()?)),
            StageKind::Rl(stage) => Some(("teacher", stage.teacher.as_deref()?)),
            StageKind::Sft(_)
            | StageKind::RewardModel(_)
            | StageKind::Sample(_)
            | StageKind::Query(_)
            | StageKind::Eval(_)
            | StageKind::Export(_) => None,
        }
    }
}

choice! {
    /// What happens to a sequence that is longer than `max_tokens`.
    pub enum Overlong {
        /// It is left out and counted.
        Drop = "drop",
        /// Its end is cut off.
        Truncate = "truncate",
        /// The stage stops before its first step.
        Error = "error",
    }
}

choice! {
    /// The tokens that the loss is over.
    pub enum LossOn {
        /// The completion and the end token; of a conversation all turns of the assistant, each with its end token.
        Completion = "completion",
        /// Of a conversation, the assistant's last turn. A chat template that leaves out the thoughts of earlier
        /// turns wants it.
        Last = "last",
        /// Of a conversation, the assistant's turns whose field `train` isn't false and whose field `weight` isn't
        /// 0; a turn without either counts.
        Flagged = "flagged",
        /// The prompt as well, or the whole conversation.
        All = "all",
    }
}

/// What the examples of an `sft` stage are, which the columns of its query say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SftForm {
    /// Plain text: a column `text`.
    Text,
    /// Conversations: a column `messages`, and no `text`.
    Conversations,
    /// A prompt and its completion each.
    Pairs,
}

impl SftForm {
    /// By the names of the columns.
    pub fn of<'a>(mut names: impl Iterator<Item = &'a str> + Clone) -> SftForm {
        if names.clone().any(|name| name == "text") {
            SftForm::Text
        } else if names.any(|name| name == "messages") {
            SftForm::Conversations
        } else {
            SftForm::Pairs
        }
    }
}

/// Whether a band is one of shares.
fn is_band([least, most]: &[f64; 2]) -> bool {
    0.0 <= *least && least <= most && *most <= 1.0
}

/// Whether bounds are such, where they are given.
fn is_range(bounds: &Option<[f64; 2]>) -> bool {
    bounds.is_none_or(|[least, most]| least <= most)
}

section! {
    /// Supervised fine-tuning of `model` on the rows of a query. Leaves the trained model, and a table of
    /// the examples with their tokens and loss masks.
    pub struct SftStage {
        /// The model to start from: one of `[models]` or an earlier training stage.
        pub model: String;
        /// The examples: columns `prompt` and `completion`; or `text` for plain text; or `messages` for
        /// conversations, lists of structs with `role` and `content` or the JSON text of such a list; `id` and
        /// `source` optional. Other fields of a message, such as `tool_calls`, are passed to the template.
        pub data: Sql;
        /// How a prompt becomes the model's input. Plain text takes none; conversations need "chat" or "r1-zero".
        pub template: Template = Template::Raw;
        /// Passes over the data.
        pub epochs: u32 = 2, "at least 1" |n| *n >= 1;
        /// Optimizer steps, at most; absent: as many as the epochs need.
        pub max_steps: Option<u64> = None, "at least 1" |n| n.is_none_or(|n| n >= 1);
        /// Sequences of one optimizer step.
        pub batch_size: u32 = 32, "at least 1" |n| *n >= 1;
        /// Tokens of one forward and backward pass, at most. Memory depends on it, results do not. "auto": as
        /// many as fit into `run.memory` or, without it, into what the machine has free, up to 4096.
        @neutral
        pub micro_batch_tokens: Auto<u32> = Auto::Auto, "at least 1" |n| n.given() != Some(0);
        /// Tokens of a sequence, prompt and end token included, at most; never more than the model has
        /// positions for.
        pub max_tokens: u32 = 1024, "at least 2" |n| *n >= 2;
        /// What happens to a longer sequence.
        pub overlong: Overlong = Overlong::Drop;
        /// The tokens that the loss is over.
        pub loss_on: LossOn = LossOn::Completion;
        /// Low-rank adapters, which are trained in place of the weights; absent: all weights are trained.
        pub lora: Option<Lora> = None;
        /// AdamW. R1's fine-tuning falls from 5e-5 to 5e-6 along a cosine.
        pub optimizer: Optimizer = Optimizer {
            lr: 5e-5,
            schedule: Schedule { kind: ScheduleKind::Cosine, warmup_steps: 0, min_lr: 5e-6 },
            ..Optimizer::default()
        };
        /// Largest global norm of the gradient; a larger one is scaled down to it; 0 is off.
        pub grad_clip: f64 = 1.0, "at least 0" |x| *x >= 0.0;
        /// Whether each epoch has its own order, drawn from the seed.
        pub shuffle: bool = true;
        /// Optimizer steps between checkpoints.
        @neutral
        pub checkpoint_every: u64 = 100, "at least 1" |n| *n >= 1;
        /// Keeps one activation per layer and computes the rest again in the backward pass: about a
        /// third more work, a fraction of the memory. "auto": only if no micro-batch fits otherwise.
        @neutral
        pub activation_checkpointing: Auto<bool> = Auto::Auto;
        /// What is watched, and what happens then.
        @neutral
        pub watchdogs: SftWatchdogs = SftWatchdogs::default();
    }
}

choice! {
    /// What happens to a pair with a sequence that is longer than `max_tokens`.
    pub enum OverlongPair {
        /// It is left out and counted.
        Drop = "drop",
        /// The stage stops before its first step.
        Error = "error",
    }
}

section! {
    /// Training of a reward model on pairs of completions. One of each pair was preferred (Bradley and Terry):
    /// `loss = mean(-log sigmoid(chosen - rejected - margin) + centering (chosen + rejected)^2)` over the pairs
    /// of a batch. A score is the product of `score.weight` with the final hidden state of a sequence's last
    /// token, which is the end token or what the template writes after it. Leaves a reward model for rewards of
    /// kind `model`, and a table of the pairs with their tokens.
    pub struct RewardModelStage {
        /// The model to start from: one of `[models]` or an earlier training stage. A language model gets a new
        /// head, drawn from the seed; a reward model goes on with its own.
        pub model: String;
        /// The pairs: columns `prompt`, `chosen`, `rejected`; `margin`, `id` and `source` optional.
        pub data: Sql;
        /// Pairs to measure on, of the same columns; absent: `held_out_share` of `data`.
        pub held_out: Option<Sql> = None;
        /// Share of the prompts of `data` whose pairs are measured on and not trained on, drawn from the seed.
        /// With `held_out` it has to be 0.
        pub held_out_share: f64 = 0.0, "in [0, 1)" |x| *x >= 0.0 && *x < 1.0;
        /// Optimizer steps between measurements on held-out pairs; 0: after the last step only.
        pub held_out_every: u64 = 0;
        /// How a prompt becomes the model's input. It is saved with the model, whose scores need the same.
        pub template: Template = Template::Raw;
        /// Passes over the data. More than one overfits soon (Ouyang et al. 2022).
        pub epochs: u32 = 1, "at least 1" |n| *n >= 1;
        /// Optimizer steps, at most; absent: as many as the epochs need.
        pub max_steps: Option<u64> = None, "at least 1" |n| n.is_none_or(|n| n >= 1);
        /// Pairs of one optimizer step.
        pub batch_size: u32 = 32, "at least 1" |n| *n >= 1;
        /// Tokens of one forward and backward pass, at most; a pair stays whole. Memory depends on it, results
        /// do not. "auto": as many as fit into `run.memory` or, without it, into what the machine has free, up
        /// to 4096.
        @neutral
        pub micro_batch_tokens: Auto<u32> = Auto::Auto, "at least 1" |n| n.given() != Some(0);
        /// Tokens of a prompt and one of its completions, end token included, at most; never more than the
        /// model has positions for.
        pub max_tokens: u32 = 1024, "at least 2" |n| *n >= 2;
        /// What happens to a pair with a longer sequence.
        pub overlong: OverlongPair = OverlongPair::Drop;
        /// Factor of the term that keeps scores near 0 (Eisenstein et al. 2023, who use 0.01); 0 is off.
        pub centering: f64 = 0.0, "at least 0" |x| *x >= 0.0;
        /// Low-rank adapters, which are trained in place of the weights; absent: all weights are trained.
        pub lora: Option<Lora> = None;
        /// AdamW, its rate falling in a line to 0.
        pub optimizer: Optimizer = Optimizer {
            lr: 1e-5,
            schedule: Schedule { kind: ScheduleKind::Linear, warmup_steps: 0, min_lr: 0.0 },
            ..Optimizer::default()
        };
        /// Largest global norm of the gradient; a larger one is scaled down to it; 0 is off.
        pub grad_clip: f64 = 1.0, "at least 0" |x| *x >= 0.0;
        /// Whether each epoch has its own order, drawn from the seed.
        pub shuffle: bool = true;
        /// Optimizer steps between checkpoints.
        @neutral
        pub checkpoint_every: u64 = 100, "at least 1" |n| *n >= 1;
        /// Keeps one activation per layer and computes the rest again in the backward pass. "auto": only if
        /// no micro-batch fits otherwise.
        @neutral
        pub activation_checkpointing: Auto<bool> = Auto::Auto;
        /// What is watched, and what happens then.
        @neutral
        pub watchdogs: NanWatchdog = NanWatchdog::default();
    }
}

choice! {
    /// How far ahead the chosen completion of a pair has to be.
    pub enum PairLoss {
        /// `-log sigmoid(d)`: DPO.
        Sigmoid = "sigmoid",
        /// `(d/beta - 1/(2 beta))^2`: IPO (Azar et al. 2023).
        Ipo = "ipo",
        /// `max(0, 1 - d)` (Liu et al. 2023).
        Hinge = "hinge",
    }
}

section! {
    /// Direct preference optimization of `model` on pairs of completions (Rafailov et al. 2023). One of each pair was
    /// preferred: `loss = mean(-log sigmoid(d))` over the pairs of a batch, with
    /// `d = beta ((logp_chosen - ref_chosen) - (logp_rejected - ref_rejected)) - margin` and log-probs of whole
    /// completions under the model that learns and under the reference, which doesn't. Leaves the trained model, and a
    /// table of the pairs with their tokens.
    pub struct DpoStage {
        /// The model to start from: one of `[models]` or an earlier training stage.
        pub model: String;
        /// The reference model, which has to have the same tokenizer; absent: the model that the stage starts from.
        pub reference: Option<String> = None, "not empty" |name| name.as_ref().is_none_or(|n| !n.is_empty());
        /// The pairs: columns `prompt`, `chosen`, `rejected`; `margin`, `id` and `source` optional. A margin is by how
        /// much the chosen completion's reward ought to be ahead (Amini et al. 2024).
        pub data: Sql;
        /// Pairs to measure on, of the same columns; absent: `held_out_share` of `data`.
        pub held_out: Option<Sql> = None;
        /// Share of the prompts of `data` whose pairs are measured on and not trained on, drawn from the seed.
        /// With `held_out` it has to be 0.
        pub held_out_share: f64 = 0.0, "in [0, 1)" |x| *x >= 0.0 && *x < 1.0;
        /// Optimizer steps between measurements on held-out pairs; 0: after the last step only.
        pub held_out_every: u64 = 0;
        /// How a prompt becomes the model's input.
        pub template: Template = Template::Raw;
        /// How far ahead the chosen completion has to be.
        pub loss: PairLoss = PairLoss::Sigmoid;
        /// How much the model is held to the reference: a completion's reward is this times the log-ratio.
        pub beta: f64 = 0.1, "above 0" |x| *x > 0.0 && x.is_finite();
        /// The probability that a pair is the wrong way round (conservative DPO: Mitchell 2023), for `sigmoid` only:
        /// `(1 - s) L(d) + s L(-d)`.
        pub label_smoothing: f64 = 0.0, "in [0, 0.5)" |x| *x >= 0.0 && *x < 0.5;
        /// Whether a completion's log-prob is the mean over its tokens (Tülu 3; what TRL has with `ipo`), and not their
        /// sum. `beta` is then larger, such as 5.
        pub length_normalised: bool = false;
        /// Factor of the mean negative log-prob of the chosen completion's tokens, a term that keeps it likely (Pang et
        /// al. 2024, who use 1; TRL's `rpo_alpha`); 0 is off.
        pub nll: f64 = 0.0, "at least 0" |x| *x >= 0.0 && x.is_finite();
        /// Passes over the data.
        pub epochs: u32 = 1, "at least 1" |n| *n >= 1;
        /// Optimizer steps, at most; absent: as many as the epochs need.
        pub max_steps: Option<u64> = None, "at least 1" |n| n.is_none_or(|n| n >= 1);
        /// Pairs of one optimizer step.
        pub batch_size: u32 = 32, "at least 1" |n| *n >= 1;
        /// Tokens of one forward and backward pass, at most; a pair stays whole, and its prompt counts once. Memory
        /// depends on it, results do not. "auto": as many as fit into `run.memory` or, without it, into what the
        /// machine has free, up to 4096.
        @neutral
        pub micro_batch_tokens: Auto<u32> = Auto::Auto, "at least 1" |n| n.given() != Some(0);
        /// Tokens of a prompt and one of its completions, end token included, at most; never more than the
        /// model has positions for.
        pub max_tokens: u32 = 1024, "at least 2" |n| *n >= 2;
        /// What happens to a pair with a longer sequence.
        pub overlong: OverlongPair = OverlongPair::Drop;
        /// Low-rank adapters, which are trained in place of the weights; absent: all weights are trained. Without a
        /// `reference` of its own the stage then has its weights in memory once.
        pub lora: Option<Lora> = None;
        /// AdamW, its rate falling in a line to 0.
        pub optimizer: Optimizer = Optimizer {
            lr: 1e-6,
            schedule: Schedule { kind: ScheduleKind::Linear, warmup_steps: 0, min_lr: 0.0 },
            ..Optimizer::default()
        };
        /// Largest global norm of the gradient; a larger one is scaled down to it; 0 is off.
        pub grad_clip: f64 = 1.0, "at least 0" |x| *x >= 0.0;
        /// Whether each epoch has its own order, drawn from the seed.
        pub shuffle: bool = true;
        /// Optimizer steps between checkpoints.
        @neutral
        pub checkpoint_every: u64 = 100, "at least 1" |n| *n >= 1;
        /// Keeps one activation per layer and computes the rest again in the backward pass. "auto": only if
        /// no micro-batch fits otherwise.
        @neutral
        pub activation_checkpointing: Auto<bool> = Auto::Auto;
        /// What is watched, and what happens then.
        @neutral
        pub watchdogs: SftWatchdogs = SftWatchdogs::default();
    }
}

choice! {
    /// What happens to a completion that no verifier could score.
    pub enum OnNull {
        /// It is left out of its group and not trained on.
        Drop = "drop",
        /// It counts as 0.
        Zero = "zero",
        /// The run stops.
        Stop = "stop",
    }
}

section! {
    /// The reference model of the KL term.
    pub struct Reference {
        /// Optimizer steps after which the policy becomes the reference; 0: never. R1-Zero's is 400.
        pub refresh_every: u64 = 400;
    }
}

section! {
    /// The critic of `objective.advantage_baseline = "value"`. It is a model of its own, which learns what to expect of
    /// a completion from each of its tokens on; it is written into checkpoints, and is no model of the run's.
    pub struct Critic {
        /// The model to start from: one of `[models]` or an earlier training stage, with the tokenizer of the stage's
        /// model. A reward model goes on with its head (InstructGPT); a language model gets one of zeros. Absent: the
        /// stage's own model.
        pub model: Option<String> = None, "not empty" |name| name.as_ref().is_none_or(|name| !name.is_empty());
        /// Steps in which only the critic learns, before the policy first moves (verl's `critic_warmup`): a critic that
        /// has seen nothing expects nothing. Their completions are in the table, left out as `critic_warmup`.
        pub warmup_steps: u64 = 0;
        /// AdamW. verl's rate is 1e-5; a critic has more to learn than the policy may move.
        pub optimizer: Optimizer = Optimizer { lr: 1e-5, ..Optimizer::default() };
        /// Largest global norm of the critic's gradient; a larger one is scaled down to it; 0 is off.
        pub grad_clip: f64 = 1.0, "at least 0" |x| *x >= 0.0;
    }
}

section! {
    /// Prompts by how hard they are for the policy. Those are drawn whose pass rate, the share of their completions
    /// that passed, lies in a band: groups that all pass or all fail teach nothing. The rate of a prompt is followed
    /// from one time that it is asked to the next, `p = momentum * p + (1 - momentum) * share`. Each prompt of the
    /// band is asked once before one of them is asked again; where the band has too few prompts, those come that are
    /// nearest to it. Prompts from sources that none of `rewards` is for are drawn as if they were in the band.
    pub struct Curriculum {
        /// Least and greatest pass rate of the prompts that are drawn.
        pub band: [f64; 2] = [0.2, 0.8], "two shares from 0 to 1, the lesser first" |band| is_band(band);
        /// Names of the stage's rewards that say whether a completion passed: for each prompt the first that is for its
        /// source. Empty: those that compare with the answer or run tests.
        pub rewards: Vec<String> = Vec::new();
        /// Least score of a completion that passed.
        pub pass_score: f64 = 1.0;
        /// Pass rate that a prompt starts with, unless the query gives one in a column `pass_rate`.
        pub prior: f64 = 0.5, "from 0 to 1" |p| (0.0..=1.0).contains(p);
        /// Share of the rate before in the rate after a prompt was asked; 0: the newest share alone counts.
        pub momentum: f64 = 0.5, "in [0, 1)" |m| (0.0..1.0).contains(m);
        /// Share of a step's prompts that come from outside the band, those first that were last asked longest ago: the
        /// policy changes, and so do their rates. 0: only where the band has too few.
        pub revisit_share: f64 = 0.1, "from 0 to 1" |share| (0.0..=1.0).contains(share);
    }
}

section! {
    /// Reinforcement learning of `model` on the prompts of a query. Leaves the trained model, a table of
    /// every completion, and the table `NAME_set_aside` of prompts that kept failing.
    pub struct RlStage {
        /// The model to start from: one of `[models]` or an earlier training stage.
        pub model: String;
        /// The prompts: columns `id`, `prompt`, `answer`; `source`, `tests` and, for a `curriculum`, `pass_rate`
        /// optional.
        pub prompts: Sql;
        /// How a prompt becomes the model's input.
        pub template: Template = Template::Raw;
        /// Weights of the prompts' sources, by the column `source`: `{ sums = 3, general = 1 }` makes three of four
        /// prompts sums. A step's share of a source is exact to a prompt, and exact on average. Each source has passes
        /// of its own: a prompt is asked once before one of its source is asked again. Empty: all prompts are one
        /// source, however many there are of each.
        pub source_weights: Weights = Weights::default(), "weights above 0" |w| w.0.values().all(|w| *w > 0.0);
        /// Which prompts are drawn, by how hard they are for the policy. Absent: all.
        pub curriculum: Option<Curriculum> = None;
        /// Steps: rounds of sampling, each followed by `inner_epochs * minibatches` optimizer steps.
        pub steps: u64 = 100, "at least 1" |n| *n >= 1;
        /// Prompts of one step. R1-Zero's is 32.
        pub prompts_per_step: u32 = 32, "at least 1" |n| *n >= 1;
        /// Completions per prompt; advantages are relative to this group, which then has 2 at the least. With another
        /// `objective.advantage_baseline` than the group's, such as a critic's, 1 will do. R1-Zero's is 16.
        pub group_size: u32 = 16, "from 1 to 65536" |n| (1..=65_536).contains(n);
        /// Whether each pass over the prompts has its own order, drawn from the seed.
        pub shuffle: bool = true;
        /// How tokens are drawn.
        pub sampling: Sampling = Sampling::default();
        /// What a completion is worth: the weighted sum of these. May be left out where a teacher is learned from.
        pub rewards: Vec<Reward> = Vec::new();
        /// What happens to a completion that no verifier could score.
        pub reward_null: OnNull = OnNull::Drop;
        /// Least and greatest reward: a weighted sum outside is taken as the bound; absent: any.
        pub reward_clip: Option<[f64; 2]> = None, "two numbers, the lesser first" |clip| is_range(clip);
        /// Rounds in which other prompts are sampled in place of those whose completions all have the same reward, at
        /// most: DAPO's dynamic sampling. After them a step trains on the groups that it has. 0: such groups stay,
        /// with advantages of 0. The groups that are replaced are in the table of rollouts, as `no_signal`. With
        /// `source_weights` prompts are replaced by others of their source, with a `curriculum` by those of its band
        /// first.
        pub resample_rounds: u32 = 0;
        /// Whether completions that were cut off at `sampling.max_tokens` are left out of the loss (DAPO's overlong
        /// filtering, TRL's `mask_truncated_completions`). Their rewards count in the advantages of the others.
        pub overlong_filter: bool = false;
        /// Times a prompt may fail before it is set aside.
        pub prompt_failures_max: u32 = 3, "at least 1" |n| *n >= 1;
        /// What is optimised. A preset sets every constant, other keys change single ones; `aha check`
        /// prints the formula that comes of it.
        pub objective: Objective = Preset::default().objective(256);
        /// The critic of `objective.advantage_baseline = "value"`; absent: one with the defaults, or none without that.
        pub critic: Option<Critic> = None;
        /// The reference model of the KL term.
        pub reference: Reference = Reference::default();
        /// The model whose distributions are learned at each token that the policy draws: on-policy distillation, by
        /// the term `objective.distill`, which `objective = { preset = "distill" }` has. One of `[models]` or an
        /// earlier training stage, with the same tokenizer.
        pub teacher: Option<String> = None, "not empty" |name| name.as_ref().is_none_or(|n| !n.is_empty());
        /// Optimizer steps that one pass over a step's completions is split into, by whole groups.
        pub minibatches: u32 = 1, "at least 1" |n| *n >= 1;
        /// Passes over a step's completions.
        pub inner_epochs: u32 = 1, "at least 1" |n| *n >= 1;
        /// Tokens of one forward and backward pass, at most; a group's prompt counts once, and once more for each
        /// micro-batch that a larger group is cut into. Memory depends on it, results do not. "auto": as many as
        /// fit into `run.memory` or, without it, into what the machine has free, up to 4096.
        @neutral
        pub micro_batch_tokens: Auto<u32> = Auto::Auto, "at least 1" |n| n.given() != Some(0);
        /// Low-rank adapters, which are trained in place of the weights; absent: all weights are trained.
        pub lora: Option<Lora> = None;
        /// AdamW. R1-Zero's rate is 3e-6, constant.
        pub optimizer: Optimizer = Optimizer::default();
        /// Largest global norm of the gradient; a larger one is scaled down to it; 0 is off.
        pub grad_clip: f64 = 1.0, "at least 0" |x| *x >= 0.0;
        /// How often weights may be published between a token and the step that trains on it, at most. 0: sampler and
        /// learner take turns, and a run gives the same bits each time. With more the sampler goes on while the learner
        /// steps, from newer weights as soon as there are some, also in the middle of a completion; a step takes the
        /// groups that have arrived, tokens of older weights have an importance weight of at most
        /// `objective.importance_cap`, and groups that are too old are left out as `stale`. A step publishes weights
        /// once, however many optimizer steps it makes. Results then depend on how fast either side is. It takes memory
        /// for two copies of the weights, and for sampling and learning at once.
        pub max_staleness: u32 = 0, "at most 64" |n| *n <= 64;
        /// With `max_staleness` above 0: what happens to groups that others overtake. `drop` leaves out those that are
        /// too old when they arrive, which are the long ones first; `wait` makes steps wait for them.
        pub on_stale: OnStale = OnStale::Drop;
        /// With `max_staleness` above 0: threads that sample. 0: what `learner_threads` leaves of `run.threads`, or
        /// half of them.
        @neutral
        pub sampler_threads: u32 = 0, "at most 256" |n| *n <= 256;
        /// With `max_staleness` above 0: threads that learn. 0: what `sampler_threads` leaves of `run.threads`, or half
        /// of them.
        @neutral
        pub learner_threads: u32 = 0, "at most 256" |n| *n <= 256;
        /// Steps between checkpoints.
        @neutral
        pub checkpoint_every: u64 = 20, "at least 1" |n| *n >= 1;
        /// Keeps one activation per layer and computes the rest again in the backward pass. "auto": only if
        /// no micro-batch fits otherwise.
        @neutral
        pub activation_checkpointing: Auto<bool> = Auto::Auto;
        /// What is watched, and what happens then.
        @neutral
        pub watchdogs: Watchdogs = Watchdogs::default();
    }
}

section! {
    /// Completions of `model` or of an `endpoint`, scored where rewards are given. Leaves a table of
    /// them, and the table `NAME_set_aside` of prompts that kept failing.
    pub struct SampleStage {
        /// The model: one of `[models]` or an earlier training stage. Absent: there is an `endpoint`.
        pub model: Option<String> = None;
        /// The server that writes the completions in a model's place. It is sent of `sampling` what it has, `top_k` and
        /// `stop_token_ids` only where they are set; `template` is then "raw" or a text.
        pub endpoint: Option<Endpoint> = None;
        /// The prompts: columns `id`, `prompt`; `answer`, `source` and `tests` optional.
        pub prompts: Sql;
        /// How a prompt becomes the model's input.
        pub template: Template = Template::Raw;
        /// Completions per prompt.
        pub n: u32 = 4, "from 1 to 65536" |n| (1..=65_536).contains(n);
        /// How tokens are drawn.
        pub sampling: Sampling = Sampling::default();
        /// How long the model thinks ahead of its answer. Absent: as long as it wants.
        pub thinking: Option<Thinking> = None;
        /// What is scored; empty: nothing.
        pub rewards: Vec<Reward> = Vec::new();
        /// Least and greatest reward: a weighted sum outside is taken as the bound; absent: any.
        pub reward_clip: Option<[f64; 2]> = None, "two numbers, the lesser first" |clip| is_range(clip);
    }
}

choice! {
    /// What a query must find.
    pub enum Expect {
        /// Whatever it finds.
        Any = "any",
        /// At least one row, else the run stops.
        Rows = "rows",
        /// No row, else the run stops: an assertion.
        NoRows = "no-rows",
    }
}

section! {
    /// A query over earlier tables. Leaves its result as a table.
    pub struct QueryStage {
        /// The query. It sees `[tables]`, earlier stages, and `rollouts`, `metrics`, `evals`.
        pub sql: Sql;
        /// What it must find.
        @neutral
        pub expect: Expect = Expect::Any;
        /// Whether its result is printed when the stage is done.
        @neutral
        pub print: bool = false;
    }
}

section! {
    /// Evaluation: pass@1, pass@k and cons@k with their standard errors. Where a scorer ranks, also best-of-n.
    /// Lengths are measured as well, and the model is rated where problems have ratings. The stage's table and
    /// `evals` get a row per model; the completions of each model are the table `NAME_MODEL`.
    pub struct EvalStage {
        /// The models, one or several: of `[models]` or earlier training stages. Absent: there is an `endpoint`.
        pub model: Option<Names> = None, "at least one model" |names| names.as_ref().is_none_or(|n| !n.0.is_empty());
        /// A server whose model is evaluated too, after those of the pipeline: a strong one beside one's own, or one
        /// alone. In tables it has its `model` for a name, as letters, digits and `_`: `org/Teacher-7B` is
        /// `org_teacher_7b`. It is sent `temperature`, `top_p`, `max_tokens` and `stop`, and `top_k` where that is set.
        /// With `template = "chat"` it applies its model's own. A problem that it doesn't give all `k` completions of
        /// is left out of its figures.
        pub endpoint: Option<Endpoint> = None;
        /// The problems: columns `id`, `prompt`, `answer`; `source`, `tests` and `rating` optional. With a
        /// benchmark, columns as one of its publishers has them.
        pub data: Sql;
        /// The benchmark that the problems are of. It reads its publishers' columns, puts its prompt around
        /// each problem, inside the template, and leaves out rows whose column `split` isn't that which
        /// results are published for.
        pub benchmark: Option<Benchmark> = None;
        /// Problems, at most: the first ones. Absent: all.
        pub limit: Option<u64> = None, "at least 1" |n| n.is_none_or(|n| n >= 1);
        /// How a prompt becomes the model's input.
        pub template: Template = Template::Raw;
        /// Completions per problem.
        pub k: u32 = 16, "from 1 to 65536" |n| (1..=65_536).contains(n);
        /// Logits are divided by it before the softmax; 0 takes the likeliest token.
        pub temperature: f64 = 0.6, "0, or from 1e-6 to 1e6" is_temperature;
        /// Smallest set of likeliest tokens whose probability reaches this share; 1 keeps all.
        pub top_p: f64 = 0.95, "from 1e-6 to 1" |p| (1e-6..=1.0).contains(p);
        /// Number of likeliest tokens to draw from; 0 keeps all.
        pub top_k: u32 = 0;
        /// Tokens of a completion, at most.
        pub max_tokens: u32 = 256, "at least 1" |n| *n >= 1;
        /// Texts that end a completion, besides the model's own end token.
        pub stop: Vec<String> = Vec::new(), "without empty texts" |s| !s.iter().any(String::is_empty);
        /// What weights are multiplied as: what is evaluated is then the rounded model.
        pub weights: SamplingWeights = SamplingWeights::Same;
        /// How long the model thinks ahead of its answer. Absent: as long as it wants.
        pub thinking: Option<Thinking> = None;
        /// The verifier, one of `rewards`; a score of 1 counts as right. Left out where there is a
        /// benchmark: that of the benchmark.
        pub reward: Reward = Reward::default();
        /// The scorer for best-of-n, one of `rewards`: how often the completion that it ranks first of n is right,
        /// for n in `ks`. With a negative `weight` the lowest score ranks first. It weighs the votes of
        /// `weighted_cons_at_k` too, for which scores should not be negative. Absent: nothing is ranked.
        pub rank_by: Option<Reward> = None;
        /// Numbers of completions that pass@, cons@ and best-of-n are given for besides 1 and `k`, each from 1 to
        /// `k`; empty: 1, 2, 4, … and `k`.
        pub ks: Vec<u32> = Vec::new(), "numbers of at least 1" |ks| ks.iter().all(|k| *k >= 1);
        /// Times that the problems are drawn again for the standard errors (bootstrap). With 1,000 an error
        /// is known within about 2 %.
        pub resamples: u32 = 1000, "from 2 to 1000000" |n| (2..=1_000_000).contains(n);
    }
}

choice! {
    /// The layout of an exported model.
    pub enum Format {
        /// A Hugging Face directory: config.json, safetensors, tokenizer.
        Hf = "hf",
        /// The adapter alone, as peft has it: adapter_config.json, safetensors. The model is a stage with `lora`.
        Peft = "peft",
    }
}

choice! {
    /// What numbers are stored as.
    pub enum Dtype {
        /// 32 bits, exact.
        F32 = "f32",
        /// bfloat16, rounded to nearest even.
        Bf16 = "bf16",
    }
}

section! {
    /// A model written out for other programs. Leaves no table.
    pub struct ExportStage {
        /// The model: one of `[models]` or an earlier training stage.
        pub model: String;
        /// The directory; absent: `models/NAME` of the run directory, or `adapters/NAME` for an adapter.
        pub out: Option<String> = None, "not empty" |out| out.as_ref().is_none_or(|o| !o.is_empty());
        /// The layout.
        pub format: Format = Format::Hf;
        /// The numbers of the weights.
        pub dtype: Dtype = Dtype::F32;
        /// Weights beyond this go into further files, with an index of all; transformers calls it
        /// `max_shard_size`. A single tensor is never split, nor is an adapter.
        pub shard_size: ByteSize = ByteSize(5_000_000_000), "more than nothing" |size| size.0 > 0;
    }
}

section_fields!(Critic, Reference, Curriculum);
