//! What a pipeline may leave to us: the tokens of a micro-batch, and whether activations are kept.
//!
//! Neither changes a result. The largest micro-batch that the budget allows is chosen by the prediction's own
//! formulas, activations are computed again only if without that none would do, and both are written into the
//! resolved pipeline: a run that goes on keeps them, on whatever machine.

use super::catalogue::ModelFacts;
use super::device::DeviceFacts;
use super::memory::{Breakdown, memory_of};
use super::reader::{Field, Key, Reader, Word};
use super::resolve::Facts;
use super::source::{Node, Value};
use super::stages::{Pipeline, Stage, StageKind};
use super::write::Out;
use crate::devices::Devices;

/// Tokens of a micro-batch past which nothing gets faster: matrix products have long reached their rate, and
/// longer batches only leave the caches.
pub const MICRO_BATCH_TOKENS_MAX: u32 = 4096;
/// Tokens of a prompt that a micro-batch has room for beside the longest completion, where the budget is small. A
/// longer one is trained on all the same.
const PROMPT_TOKENS: u32 = 256;
/// Micro-batches are multiples of it, where that is more than the longest sequence.
const TOKENS_UNIT: u32 = 64;
/// The word of the file.
const AUTO: &str = "auto";

/// A value, or the word "auto" for one that is chosen when the pipeline is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Auto<T> {
    /// Not chosen yet.
    #[default]
    Auto,
    /// As the file says, or as it was chosen.
    Given(T),
}

impl<T: Copy> Auto<T> {
    /// The value, if it is known.
    pub fn given(self) -> Option<T> {
        match self {
            Auto::Auto => None,
            Auto::Given(value) => Some(value),
        }
    }
}

impl Auto<u32> {
    /// The tokens; where nobody has chosen, as many as make sense.
    pub fn tokens(self) -> u32 {
        self.given().unwrap_or(MICRO_BATCH_TOKENS_MAX)
    }
}

impl Auto<bool> {
    /// Whether it is on; where nobody has chosen, it is off.
    pub fn is_on(self) -> bool {
        self.given().unwrap_or(false)
    }
}

impl<T: Field + Copy + Default> Field for Auto<T> {
    fn expects() -> String {
        format!("{}, or \"{AUTO}\"", T::expects())
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>, base: Self) -> Self {
        match &node.value {
            Value::String(word) if word == AUTO => Auto::Auto,
            Value::String(_) => {
                reader.wrong_type(node, path, &Self::expects());
                base
            }
            _ => Auto::Given(T::read(node, path, reader, base.given().unwrap_or_default())),
        }
    }
    fn write(&self) -> Option<Out> {
        match self {
            Auto::Auto => Some(Out::string(AUTO)),
            Auto::Given(value) => value.write(),
        }
    }
    fn words() -> Vec<Word> {
        T::words()
    }
    fn keys(&self) -> Vec<Key> {
        T::default().keys()
    }
}

/// What choices are made by, besides the pipeline.
#[derive(Clone, Copy, Debug, Default)]
pub struct Room<'a> {
    /// CUDA devices that may be there; absent: nobody looks for any.
    pub devices: Option<&'a dyn Devices>,
    /// Whether the run starts now, so that it has the room that is free on a device, and not all of it.
    pub starts: bool,
    /// Memory that the machine has to spare, for pipelines without `run.memory`; absent: not known.
    pub free_bytes: Option<u64>,
    /// The pipeline of the run that goes on, whose choices are kept.
    pub earlier: Option<&'a Pipeline>,
}

/// What a training stage may leave to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Knobs {
    /// `micro_batch_tokens`.
    pub tokens: Auto<u32>,
    /// `activation_checkpointing`.
    pub checkpointing: Auto<bool>,
}

impl Knobs {
    /// Those of a training stage.
    pub fn of(kind: &StageKind) -> Option<Knobs> {
        let (tokens, checkpointing) = match kind {
            StageKind::Sft(stage) => (stage.micro_batch_tokens, stage.activation_checkpointing),
            StageKind::RewardModel(stage) => {
                (stage.micro_batch_tokens, stage.activation_checkpointing)
            }
            StageKind::Dpo(stage) => (stage.micro_batch_tokens, stage.activation_checkpointing),
            StageKind::Rl(stage) => (stage.micro_batch_tokens, stage.activation_checkpointing),
            StageKind::Sample(_)
            | StageKind::Query(_)
            | StageKind::Eval(_)
            | StageKind::Export(_) => return None,
        };
        Some(Knobs { tokens, checkpointing })
    }

    fn set(self, kind: &mut StageKind) {
        let (tokens, checkpointing) = match kind {
            StageKind::Sft(stage) => {
                (&mut stage.micro_batch_tokens, &mut stage.activation_checkpointing)
            }
            StageKind::RewardModel(stage) => {
                (&mut stage.micro_batch_tokens, &mut stage.activation_checkpointing)
            }
            StageKind::Dpo(stage) => {
                (&mut stage.micro_batch_tokens, &mut stage.activation_checkpointing)
            }
            StageKind::Rl(stage) => {
                (&mut stage.micro_batch_tokens, &mut stage.activation_checkpointing)
            }
            StageKind::Sample(_)
            | StageKind::Query(_)
            | StageKind::Eval(_)
            | StageKind::Export(_) => return,
        };
        (*tokens, *checkpointing) = (self.tokens, self.checkpointing);
    }

    fn is_open(self) -> bool {
        self.tokens == Auto::Auto || self.checkpointing == Auto::Auto
    }
}

/// Chooses what the training stages leave open. Returns the names of those stages whose least is more than the
/// machine has to spare.
pub(crate) fn choose(
    pipeline: &mut Pipeline,
    facts: &Facts,
    (room, device): (Room<'_>, Option<&DeviceFacts>),
) -> Vec<String> {
    let budget = pipeline.run.memory.map(|limit| limit.0).or(room.free_bytes);
    let mut too_large = Vec::new();
    for idx in 0..pipeline.stages.len() {
        let stage = &pipeline.stages[idx];
        let Some(knobs) = Knobs::of(&stage.kind).filter(|knobs| knobs.is_open()) else { continue };
        let kept = room.earlier.and_then(|earlier| kept(knobs, stage, earlier));
        let chosen = kept.or_else(|| {
            let model = stage.kind.models().first().and_then(|name| facts.models.get(name))?;
            let fits = |knobs: Knobs| {
                let mut stage = stage.clone();
                knobs.set(&mut stage.kind);
                let needs = memory_of(pipeline, &stage, facts);
                let within = |found: &Breakdown, room: Option<u64>| {
                    room.is_none_or(|room| found.total_bytes() <= room)
                };
                within(&needs.host, budget)
                    && within(&needs.device, device.map(|device| device.room_bytes(room.starts)))
            };
            let (chosen, fits) = fitting(knobs, longest(&stage.kind, model), fits);
            if !fits {
                too_large.push(stage.name.clone());
            }
            Some(chosen)
        });
        // Of a model that nothing is known of something else is wrong, and is reported.
        if let Some(chosen) = chosen {
            chosen.set(&mut pipeline.stages[idx].kind);
        }
    }
    too_large
}

/// What the run that goes on had chosen.
fn kept(knobs: Knobs, stage: &Stage, earlier: &Pipeline) -> Option<Knobs> {
    let found = earlier.stages.iter().find(|found| found.name == stage.name)?;
    let found = Knobs::of(&found.kind)?;
    let kept = Knobs {
        tokens: Auto::Given(knobs.tokens.given().or(found.tokens.given())?),
        checkpointing: Auto::Given(knobs.checkpointing.given().or(found.checkpointing.given())?),
    };
    Some(kept)
}

/// Tokens of the longest sequence, or pair, that a micro-batch must have room for.
pub(crate) fn longest(kind: &StageKind, model: &ModelFacts) -> u32 {
    match kind {
        StageKind::Sft(stage) => stage.max_tokens,
        StageKind::RewardModel(stage) => stage.max_tokens.saturating_mul(2),
        StageKind::Dpo(stage) => stage.max_tokens.saturating_mul(2),
        StageKind::Rl(stage) => {
            let completion = stage.sampling.max_tokens;
            let with_prompt = completion.saturating_add(PROMPT_TOKENS);
            with_prompt.min(model.max_position_embeddings).max(completion.saturating_add(1))
        }
        StageKind::Sample(_) | StageKind::Query(_) | StageKind::Eval(_) | StageKind::Export(_) => 1,
    }
}

/// The choice, and whether it fits: the largest micro-batch of `least` tokens or more that does, without computing
/// activations again if there is one. What fits does so with fewer tokens too.
fn fitting(knobs: Knobs, least: u32, fits: impl Fn(Knobs) -> bool) -> (Knobs, bool) {
    let (least, most) = match knobs.tokens {
        Auto::Given(tokens) => (tokens, tokens),
        Auto::Auto => (least, least.max(MICRO_BATCH_TOKENS_MAX)),
    };
    let with = |tokens: u32, is_on: bool| Knobs {
        tokens: Auto::Given(tokens),
        checkpointing: Auto::Given(is_on),
    };
    let ways = match knobs.checkpointing {
        Auto::Given(is_on) => [is_on; 2],
        Auto::Auto => [false, true],
    };
    for is_on in ways {
        if fits(with(most, is_on)) {
            return (with(most, is_on), true);
        }
        if fits(with(least, is_on)) {
            let (mut low, mut high) = (least, most);
            while high - low > 1 {
                let middle = low + (high - low) / 2;
                if fits(with(middle, is_on)) { low = middle } else { high = middle }
            }
            let even = low / TOKENS_UNIT * TOKENS_UNIT;
            return (with(even.max(least), is_on), true);
        }
    }
    (with(least, ways[1]), false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Knobs = Knobs { tokens: Auto::Auto, checkpointing: Auto::Auto };

    /// 1000 bytes, and per token 10 with all activations and 2 without.
    fn needs(knobs: Knobs) -> u64 {
        let per_token = if knobs.checkpointing.is_on() { 2 } else { 10 };
        1000 + per_token * u64::from(knobs.tokens.tokens())
    }

    #[track_caller]
    fn expect(knobs: Knobs, budget: Option<u64>, (tokens, is_on, fits): (u32, bool, bool)) {
        let expected = Knobs { tokens: Auto::Given(tokens), checkpointing: Auto::Given(is_on) };
        let within = |knobs| budget.is_none_or(|budget| needs(knobs) <= budget);
        assert_eq!(fitting(knobs, 500, within), (expected, fits), "{knobs:?} {budget:?}");
    }

    #[test]
    fn the_largest_micro_batch_that_fits_is_chosen() {
        expect(OPEN, None, (4096, false, true));
        expect(OPEN, Some(1000 + 40_960), (4096, false, true));
        expect(OPEN, Some(1000 + 40_959), (4032, false, true));
        expect(OPEN, Some(1000 + 6_399), (576, false, true));
        // Less than a unit above the longest sequence.
        expect(OPEN, Some(1000 + 5_009), (500, false, true));
        expect(OPEN, Some(1000 + 5_000), (500, false, true));
    }

    #[test]
    fn activations_are_computed_again_only_if_nothing_fits_otherwise() {
        expect(OPEN, Some(1000 + 4_999), (2496, true, true));
        expect(OPEN, Some(1000 + 1_000), (500, true, true));
        expect(OPEN, Some(1000 + 999), (500, true, false));
    }

    #[test]
    fn what_is_given_stays() {
        let tokens = Knobs { tokens: Auto::Given(300), ..OPEN };
        expect(tokens, Some(1000 + 3_000), (300, false, true));
        expect(tokens, Some(1000 + 2_999), (300, true, true));
        expect(tokens, Some(1000), (300, true, false));
        let off = Knobs { checkpointing: Auto::Given(false), ..OPEN };
        expect(off, Some(1000 + 4_999), (500, false, false));
        let on = Knobs { checkpointing: Auto::Given(true), ..OPEN };
        expect(on, None, (4096, true, true));
    }
}
