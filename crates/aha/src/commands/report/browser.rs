//! A sample of the completions, token by token: chosen by rules, so that the same rows give the same page.
//!
//! # Map
//! - [`gather`]: the tables with completions, and what is shown of each; start here.
//! - [`choice`]: how many steps, prompts, completions and tokens that is.
//! - [`tokens`]: token ids as text. [`tokenizers`]: where a stage's tokenizer is.

mod choice;
mod tokenizers;
mod tokens;

use aha_data::Session;
use aha_flow::pipeline::{EvalStage, Pipeline};
use aha_flow::rundir::RunDir;
use aha_model::Tokenizer;
use aha_rollout::{col, schema};
use serde::{Deserialize, Serialize};

use super::ask::{self, Num};
use super::facts::Stage;
use crate::text;
use choice::{Bounds, Size, evenly};
use tokenizers::Tokenizers;
use tokens::{Pieces, Tokens};

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
    pub groups_count: usize,
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

/// A table with completions, before anything is read of it.
struct Table {
    name: String,
    stage: String,
    kind: String,
    model: Option<String>,
    /// The model whose tokenizer its tokens are of.
    written_by: String,
}

/// Reads what is shown of every table that a stage samples.
pub async fn gather(
    session: &Session,
    dir: &RunDir,
    stages: &[Stage],
    pipeline: Option<&Pipeline>,
) -> anyhow::Result<Browser> {
    let known = session.table_names();
    let tables: Vec<Table> =
        stages.iter().flat_map(tables_of).filter(|table| known.contains(&table.name)).collect();
    let bounds = Bounds::for_tables(tables.len());
    let mut tokenizers = Tokenizers::new(dir, pipeline);
    let mut browser = Browser { pieces: Pieces::default(), sources: Vec::new() };
    for table in tables {
        let tokenizer = tokenizers.of(&table.written_by);
        let source = source(session, table, bounds, tokenizer.as_deref(), &mut browser.pieces);
        browser.sources.extend(source.await?);
    }
    Ok(browser)
}

fn tables_of(stage: &Stage) -> Vec<Table> {
    let table = |name: String, model: Option<&String>, written_by: &String| Table {
        name,
        stage: stage.name.clone(),
        kind: stage.kind.clone(),
        model: model.cloned(),
        written_by: written_by.clone(),
    };
    let own = stage.name.clone();
    match stage.kind.as_str() {
        "rl" => vec![table(own, None, &stage.name)],
        "sample" => {
            let model = stage.models.first();
            vec![table(own, model, model.unwrap_or(&stage.name))]
        }
        "eval" => {
            let of_model = |model: &String| {
                table(EvalStage::completions(&stage.name, model), Some(model), model)
            };
            stage.models.iter().map(of_model).collect()
        }
        _ => Vec::new(),
    }
}

#[derive(Deserialize)]
struct StepRow {
    step: u64,
    rows: u64,
    groups: u64,
    tokens: u64,
}

#[derive(Deserialize)]
struct GroupRow {
    step: u64,
    prompt_id: String,
    size: u64,
}

/// A step as it is read.
struct ReadStep {
    step: u64,
    groups_count: usize,
    groups: Vec<ReadGroup>,
}

/// A group as it is read: the prompt's identity, how many completions there are, and those that are shown.
struct ReadGroup {
    id: String,
    size: u64,
    rows: Vec<Read>,
}

/// What is shown of a table; none where it has no rows yet.
async fn source(
    session: &Session,
    table: Table,
    bounds: Bounds,
    tokenizer: Option<&Tokenizer>,
    pieces: &mut Pieces,
) -> anyhow::Result<Option<Source>> {
    let quoted = ask::name(&table.name);
    let columns = session.schema_of(&format!("SELECT * FROM {quoted}")).await?;
    if !schema::is_rollouts(&columns) {
        return Ok(None);
    }
    let reward_names = schema::reward_names(&columns);
    let all: Vec<StepRow> = ask::rows(
        session,
        &format!(
            "SELECT step, count(*) AS rows, count(DISTINCT prompt_id) AS groups, \
                    sum(completion_len_tokens) AS tokens FROM {quoted} GROUP BY step ORDER BY step"
        ),
    )
    .await?;
    let total = |of: fn(&StepRow) -> u64| all.iter().map(of).sum::<u64>() as usize;
    let size = Size {
        steps: all.len(),
        groups: total(|row| row.groups),
        rows: total(|row| row.rows),
        tokens: total(|row| row.tokens),
    };
    let bounds = bounds.fit(size);
    let steps: Vec<u64> =
        evenly(all.len(), bounds.steps).into_iter().map(|idx| all[idx].step).collect();
    let mut read = choose(session, &quoted, &steps, bounds).await?;
    for some in read.chunks_mut(bounds.steps_at_once(size)) {
        fill(session, &quoted, &reward_names, some, bounds).await?;
    }
    let rows = read.iter().flat_map(|step| &step.groups).flat_map(|group| &group.rows);
    let tokens_max = bounds.tokens_of(rows.map(|row| row.ids.len()));
    let mut show = |row: Read| row.shown(tokenizer, pieces, tokens_max);
    let steps = read.into_iter().map(|read| Step {
        step: read.step,
        groups_count: read.groups_count,
        groups: read.groups.into_iter().filter_map(|read| group(read, &mut show)).collect(),
    });
    let steps: Vec<Step> = steps.collect();
    Ok((!steps.is_empty()).then_some(Source {
        table: table.name,
        stage: table.stage,
        kind: table.kind,
        model: table.model,
        reward_names,
        steps_count: all.len(),
        steps,
    }))
}

/// The groups of these steps that are shown, without their rows.
async fn choose(
    session: &Session,
    table: &str,
    steps: &[u64],
    bounds: Bounds,
) -> anyhow::Result<Vec<ReadStep>> {
    if steps.is_empty() {
        return Ok(Vec::new());
    }
    let listed: Vec<String> = steps.iter().map(u64::to_string).collect();
    let all: Vec<GroupRow> = ask::rows(
        session,
        &format!(
            "SELECT step, prompt_id, count(*) AS size FROM {table} WHERE step IN ({}) \
             GROUP BY step, prompt_id ORDER BY step, prompt_id",
            listed.join(", ")
        ),
    )
    .await?;
    let steps = all.chunk_by(|a, b| a.step == b.step).map(|groups| ReadStep {
        step: groups[0].step,
        groups_count: groups.len(),
        groups: evenly(groups.len(), bounds.groups)
            .into_iter()
            .map(|idx| &groups[idx])
            .map(|of| ReadGroup { id: of.prompt_id.clone(), size: of.size, rows: Vec::new() })
            .collect(),
    });
    Ok(steps.collect())
}

/// Reads the rows of the groups.
async fn fill(
    session: &Session,
    table: &str,
    reward_names: &[String],
    steps: &mut [ReadStep],
    bounds: Bounds,
) -> anyhow::Result<()> {
    let columns: Vec<String> =
        reward_names.iter().map(|reward| ask::name(&col::reward(reward))).collect();
    let parts = match columns.as_slice() {
        [] => "NULL".to_owned(),
        columns => format!("make_array({})", columns.join(", ")),
    };
    let wanted = steps.iter().map(|step| {
        let ids: Vec<String> = step.groups.iter().map(|group| ask::text(&group.id)).collect();
        format!("(step = {} AND prompt_id IN ({}))", step.step, ids.join(", "))
    });
    let rows: Vec<Read> = ask::rows(
        session,
        &format!(
            "SELECT step, prompt_id, prompt, answer, source, sample_idx, completion, \
                    completion_token_ids AS ids, completion_logprobs AS logprobs, \
                    completion_len_tokens AS len, finish_reason, reward, {parts} AS parts, reward_error, \
                    advantage, is_trained, skip_reason \
             FROM {table} WHERE sample_idx < {} AND ({}) ORDER BY step, prompt_id, sample_idx",
            bounds.completions,
            wanted.collect::<Vec<_>>().join(" OR ")
        ),
    )
    .await?;
    for row in rows {
        let step = steps.iter_mut().find(|step| step.step == row.step);
        let group = step.and_then(|s| s.groups.iter_mut().find(|group| group.id == row.prompt_id));
        if let Some(group) = group {
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
    step: u64,
    prompt_id: String,
    prompt: String,
    answer: Option<String>,
    source: Option<String>,
    sample_idx: u64,
    completion: String,
    ids: Vec<u32>,
    logprobs: Vec<Num>,
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
        let logprobs: Vec<f64> = self.logprobs.iter().map(|logprob| logprob.0).collect();
        let spelled = tokenizer
            .and_then(|tokenizer| tokens::spell(tokenizer, &self.ids, &logprobs, &self.completion));
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
                Some(spelled) => Tokens::of(spelled, tokens_max, pieces),
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

    #[test]
    fn an_evaluation_has_a_table_for_each_of_its_models() {
        let stage = |kind: &str| Stage {
            name: "s".to_owned(),
            kind: kind.to_owned(),
            models: vec!["a".to_owned(), "b".to_owned()],
            ..Stage::default()
        };
        let names = |kind: &str| -> Vec<(String, String)> {
            let tables = tables_of(&stage(kind)).into_iter();
            tables.map(|table| (table.name, table.written_by)).collect()
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(names("eval"), [pair("s_a", "a"), pair("s_b", "b")]);
        assert_eq!(names("rl"), [pair("s", "s")]);
        assert_eq!(names("sample"), [pair("s", "a")]);
        assert!(names("sft").is_empty());
    }
}
