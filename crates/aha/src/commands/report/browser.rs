//! A sample of the completions, token by token: chosen by rules, so that the same rows give the same page.
//!
//! # Map
//! - [`gather`]: the tables with completions, and what is shown of each; start here.
//! - [`choice`]: how many steps, prompts, completions and tokens that is.
//! - [`tokens`]: token ids as text. [`tokenizers`]: where a stage's tokenizer is.

mod choice;
mod tokenizers;
mod tokens;

use std::path::PathBuf;

use aha_data::Session;
use aha_flow::pipeline::Pipeline;
use aha_flow::rundir::RunDir;
use aha_model::Tokenizer;
use aha_rollout::col;
use serde::{Deserialize, Serialize};

use super::ask::{self, Num};
use super::look::{self, Looked};
use crate::text;
pub use choice::evenly;
use choice::{Bounds, Size};
use tokenizers::Tokenizers;
use tokens::{Measures, Pieces, Tokens};

/// Text of a prompt or of an answer that is shown, in characters.
const PROMPT_CHARS_MAX: usize = 3000;
const ANSWER_CHARS_MAX: usize = 500;

/// A sample of the completions.
#[derive(Serialize)]
pub struct Browser {
    /// Texts of tokens; completions name them by their index.
    pub pieces: Pieces,
    /// The tables that have completions.
    pub sources: Vec<Source>,
}

/// A table with completions.
#[derive(Serialize)]
pub struct Source {
    /// The table.
    pub table: String,
    /// The stage that wrote it.
    pub stage: String,
    /// Its kind.
    pub kind: String,
    /// The model that wrote the completions; none where the stage's own did.
    pub model: Option<String>,
    /// The parts of the reward.
    pub reward_names: Vec<String>,
    /// Steps that there are.
    pub steps_count: usize,
    /// Steps that are shown, ascending.
    pub steps: Vec<Step>,
}

/// A step of a table. That of a stage without steps is 0.
#[derive(Serialize)]
pub struct Step {
    /// The step.
    pub step: u64,
    /// Prompts that it has.
    pub groups_count: u64,
    /// Prompts that are shown.
    pub groups: Vec<Group>,
}

/// The completions of a prompt.
#[derive(Serialize)]
pub struct Group {
    /// The prompt's identity.
    pub id: String,
    /// Where the problem is from.
    pub source: Option<String>,
    /// The problem.
    pub prompt: String,
    /// The reference answer.
    pub answer: Option<String>,
    /// Completions that there are.
    pub size: u64,
    /// Those that are shown.
    pub rows: Vec<Row>,
}

/// A completion.
#[derive(Serialize)]
pub struct Row {
    /// Which of its group it is.
    pub idx: u64,
    /// Its tokens.
    pub len: u64,
    /// Why it ended.
    pub finish: String,
    /// The reward.
    pub reward: Option<Num>,
    /// Its parts, in the order of [`Source::reward_names`].
    pub parts: Vec<Option<Num>>,
    /// Why a part is missing.
    pub error: Option<String>,
    /// The advantage.
    pub adv: Option<Num>,
    /// Whether it was trained on.
    pub trained: bool,
    /// Why it was not.
    pub skip: Option<String>,
    /// What it says.
    pub tokens: Tokens,
}

/// Reads what is shown of every table.
pub async fn gather(
    session: &Session,
    dir: &RunDir,
    looked: &[Looked],
    pipeline: Option<&Pipeline>,
) -> anyhow::Result<Browser> {
    let bounds = Bounds::for_tables(looked.len());
    let mut tokenizers = Tokenizers::new(dir, pipeline);
    let mut browser = Browser { pieces: Pieces::default(), sources: Vec::new() };
    for table in looked {
        let tokenizer = tokenizers.of(&table.table.written_by);
        let source = source(session, table, bounds, tokenizer.as_deref(), &mut browser.pieces);
        browser.sources.push(source.await?);
    }
    Ok(browser)
}

#[derive(Deserialize)]
struct GroupRow {
    prompt_id: String,
    size: u64,
}

/// A step as it is read.
struct ReadStep {
    step: u64,
    groups_count: u64,
    groups: Vec<ReadGroup>,
}

/// A group as it is read: the prompt's identity, how many completions there are, and those that are shown.
struct ReadGroup {
    id: String,
    size: u64,
    rows: Vec<Read>,
}

/// What is shown of a table.
async fn source(
    session: &Session,
    looked: &Looked,
    bounds: Bounds,
    tokenizer: Option<&Tokenizer>,
    pieces: &mut Pieces,
) -> anyhow::Result<Source> {
    let total = |of: fn(&look::Step) -> u64| looked.total(of) as usize;
    let bounds = bounds.fit(Size {
        steps: looked.steps.len(),
        groups: total(|step| step.groups),
        rows: total(|step| step.rows),
        tokens: total(|step| step.tokens),
    });
    let mut read = Vec::new();
    for idx in evenly(looked.steps.len(), bounds.steps) {
        read.push(read_step(session, looked, &looked.steps[idx], bounds).await?);
    }
    let rows = || read.iter().flat_map(|step| &step.groups).flat_map(|group| &group.rows);
    // A token with an advantage and a value of its own takes about twice the room.
    let room = if rows().any(|row| row.advantages.is_some()) { 2 } else { 1 };
    let tokens_max = bounds.tokens_of(rows().map(|row| row.ids.len()), room);
    let mut show = |row: Read| row.shown(tokenizer, pieces, tokens_max);
    let steps = read.into_iter().map(|read| Step {
        step: read.step,
        groups_count: read.groups_count,
        groups: read.groups.into_iter().filter_map(|read| group(read, &mut show)).collect(),
    });
    let table = &looked.table;
    Ok(Source {
        table: table.name.clone(),
        stage: table.stage.clone(),
        kind: table.kind.clone(),
        model: table.model.clone(),
        reward_names: looked.reward_names.clone(),
        steps_count: looked.steps.len(),
        steps: steps.collect(),
    })
}

/// The groups of a step that are shown, with their rows. Where many parts hold the step, they are from some of
/// them, at even distances.
async fn read_step(
    session: &Session,
    looked: &Looked,
    step: &look::Step,
    bounds: Bounds,
) -> anyhow::Result<ReadStep> {
    let parts = evenly(step.parts.len(), bounds.groups).into_iter();
    let parts: Vec<PathBuf> = parts.map(|idx| step.parts[idx].clone()).collect();
    session.register_parts(ask::SHOWN, &parts)?;
    let all: Vec<GroupRow> = ask::rows(
        session,
        &format!(
            "SELECT prompt_id, count(*) AS size FROM {} WHERE step = {} \
             GROUP BY prompt_id ORDER BY prompt_id",
            ask::name(ask::SHOWN),
            step.step
        ),
    )
    .await?;
    let groups = evenly(all.len(), bounds.groups).into_iter().map(|idx| &all[idx]);
    let groups =
        groups.map(|of| ReadGroup { id: of.prompt_id.clone(), size: of.size, rows: Vec::new() });
    let mut read =
        ReadStep { step: step.step, groups_count: step.groups, groups: groups.collect() };
    fill(session, looked, &mut read, bounds).await?;
    Ok(read)
}

/// Reads the rows of the groups.
async fn fill(
    session: &Session,
    looked: &Looked,
    step: &mut ReadStep,
    bounds: Bounds,
) -> anyhow::Result<()> {
    let rewards = looked.reward_names.iter().map(|reward| ask::name(&col::reward(reward)));
    let parts = match rewards.collect::<Vec<String>>() {
        columns if columns.is_empty() => "NULL".to_owned(),
        columns => format!("make_array({})", columns.join(", ")),
    };
    // Columns that came later may be absent.
    let known = |name: &str| match looked.columns.iter().any(|column| column == name) {
        true => name.to_owned(),
        false => "NULL".to_owned(),
    };
    let ids: Vec<String> = step.groups.iter().map(|group| ask::text(&group.id)).collect();
    let rows: Vec<Read> = ask::rows(
        session,
        &format!(
            "SELECT prompt_id, prompt, answer, source, sample_idx, completion, \
                    completion_token_ids AS ids, completion_logprobs AS logprobs, \
                    {} AS advantages, {} AS \"values\", {} AS forced, \
                    completion_len_tokens AS len, finish_reason, reward, {parts} AS parts, reward_error, \
                    advantage, is_trained, skip_reason \
             FROM {} WHERE step = {} AND sample_idx < {} AND prompt_id IN ({}) \
             ORDER BY prompt_id, sample_idx",
            known(col::COMPLETION_ADVANTAGES),
            known(col::COMPLETION_VALUES),
            known(col::COMPLETION_FORCED_MASK),
            ask::name(ask::SHOWN),
            step.step,
            bounds.completions,
            ids.join(", ")
        ),
    )
    .await?;
    for row in rows {
        if let Some(group) = step.groups.iter_mut().find(|group| group.id == row.prompt_id) {
            group.rows.push(row);
        }
    }
    Ok(())
}

fn group(read: ReadGroup, show: &mut impl FnMut(Read) -> Row) -> Option<Group> {
    let first = read.rows.first()?;
    Some(Group {
        id: text::one_line(&read.id),
        source: first.source.as_deref().map(text::one_line),
        prompt: shown(&first.prompt, PROMPT_CHARS_MAX),
        answer: first.answer.as_deref().map(|answer| shown(answer, ANSWER_CHARS_MAX)),
        size: read.size,
        rows: read.rows.into_iter().map(show).collect(),
    })
}

/// The beginning of a text, made harmless.
fn shown(whole: &str, chars_max: usize) -> String {
    match whole.char_indices().nth(chars_max) {
        Some((end, _)) => text::lines(&whole[..end]) + "…",
        None => text::lines(whole),
    }
}

/// A completion as it is read.
#[derive(Deserialize)]
struct Read {
    prompt_id: String,
    prompt: String,
    answer: Option<String>,
    source: Option<String>,
    sample_idx: u64,
    completion: String,
    ids: Vec<u32>,
    logprobs: Vec<Num>,
    advantages: Option<Vec<Num>>,
    values: Option<Vec<Num>>,
    forced: Option<Vec<bool>>,
    len: u64,
    finish_reason: String,
    reward: Option<Num>,
    parts: Option<Vec<Option<Num>>>,
    reward_error: Option<String>,
    advantage: Option<Num>,
    is_trained: bool,
    skip_reason: Option<String>,
}

impl Read {
    fn shown(self, tokenizer: Option<&Tokenizer>, pieces: &mut Pieces, tokens_max: usize) -> Row {
        let numbers = |all: &[Num]| all.iter().map(|number| number.0).collect::<Vec<f64>>();
        let spelled =
            tokenizer.and_then(|tokenizer| tokens::spell(tokenizer, &self.ids, &self.completion));
        let measures = Measures {
            logprobs: numbers(&self.logprobs),
            advantages: self.advantages.as_deref().map(numbers),
            values: self.values.as_deref().map(numbers),
            forced: self.forced.unwrap_or_default(),
        };
        Row {
            idx: self.sample_idx,
            len: self.len,
            finish: text::one_line(&self.finish_reason),
            reward: self.reward,
            parts: self.parts.unwrap_or_default(),
            error: self.reward_error.as_deref().map(|error| shown(error, ANSWER_CHARS_MAX)),
            adv: self.advantage,
            trained: self.is_trained,
            skip: self.skip_reason.as_deref().map(text::one_line),
            tokens: match spelled {
                Some(spelled) => Tokens::of(spelled, &measures, tokens_max, pieces),
                None => Tokens::plain(&self.completion, tokens_max),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_and_all_of_it_is_harmless() {
        assert_eq!(shown("wé\u{1b}\nx", 9), "wé\\u{1b}\nx");
        assert_eq!(shown("wéx", 2), "wé…");
        assert_eq!(shown("", 0), "");
    }
}
