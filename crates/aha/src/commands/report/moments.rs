//! "Aha moments": the first steps at which a right answer looks back at itself.

use aha_data::Session;
use aha_flow::pipeline::Pipeline;
use aha_reward::text::reflections;
use aha_rollout::col;
use serde::{Deserialize, Serialize};

use super::ask;
use super::curves::Rules;
use super::facts;
use crate::text;

/// Steps of a stage that are shown.
const STEPS_MAX: usize = 3;
/// Text of a completion that is shown, around the first reflection word, in bytes.
const SHOWN_BYTES: [usize; 2] = [2500, 3500];

/// What an `rl` stage has of them.
#[derive(Serialize)]
pub struct Stage {
    /// The stage.
    pub stage: String,
    /// The reward part that says what is right; none where none compares with answers.
    pub reward: Option<String>,
    /// The first steps, ascending.
    pub moments: Vec<Moment>,
}

/// The first right answer of a step with reflection words, by prompt and sample.
#[derive(Debug, Serialize)]
pub struct Moment {
    /// The step.
    pub step: u64,
    /// Right answers of the step with reflection words.
    pub count: u64,
    /// The prompt's identity.
    pub prompt_id: String,
    /// The problem.
    pub prompt: String,
    /// The reference answer.
    pub answer: Option<String>,
    /// Which of its group it is.
    pub sample_idx: u64,
    /// The completion in pieces: what is between reflection words, and those, in turns.
    pub pieces: Vec<String>,
}

#[derive(Deserialize)]
struct StepRow {
    step: u64,
    count: u64,
}

#[derive(Deserialize)]
struct Row {
    prompt_id: String,
    prompt: String,
    answer: Option<String>,
    sample_idx: u64,
    completion: String,
}

/// Looks for them in every `rl` stage that has sampled.
pub async fn gather(
    session: &Session,
    stages: &[facts::Stage],
    pipeline: Option<&Pipeline>,
) -> anyhow::Result<Vec<Stage>> {
    let mut found = Vec::new();
    for stage in stages.iter().filter(|s| s.kind == "rl" && s.completions_count.is_some()) {
        let reward = Rules::of(&stage.name, pipeline).right;
        let moments = match &reward {
            Some(reward) => of_stage(session, &stage.name, reward).await?,
            None => Vec::new(),
        };
        found.push(Stage { stage: stage.name.clone(), reward, moments });
    }
    Ok(found)
}

async fn of_stage(session: &Session, stage: &str, reward: &str) -> anyhow::Result<Vec<Moment>> {
    let table = ask::name(stage);
    let score = ask::name(&col::reward(reward));
    let is_moment = format!("{score} = 1 AND reflection_count(completion) > 0");
    let steps: Vec<StepRow> = ask::rows(
        session,
        &format!(
            "SELECT step, count(*) AS count FROM {table} WHERE {is_moment} \
             GROUP BY step ORDER BY step LIMIT {STEPS_MAX}"
        ),
    )
    .await?;
    let mut moments = Vec::new();
    for StepRow { step, count } in steps {
        let rows: Vec<Row> = ask::rows(
            session,
            &format!(
                "SELECT prompt_id, prompt, answer, sample_idx, completion FROM {table} \
                 WHERE step = {step} AND {is_moment} ORDER BY prompt_id, sample_idx LIMIT 1"
            ),
        )
        .await?;
        moments.extend(rows.into_iter().map(|row| Moment {
            step,
            count,
            prompt_id: text::one_line(&row.prompt_id),
            prompt: text::lines(&row.prompt),
            answer: row.answer.map(|answer| text::lines(&answer)),
            sample_idx: row.sample_idx,
            pieces: pieces(&row.completion),
        }));
    }
    Ok(moments)
}

/// A completion in pieces: every other one, from the second on, is a reflection word. A long one is cut around
/// the first of them.
fn pieces(completion: &str) -> Vec<String> {
    let first = reflections(completion).next().map_or(0, |found| found.start);
    let [before, after] = SHOWN_BYTES;
    let start = completion.floor_char_boundary(first.saturating_sub(before));
    let end = completion.floor_char_boundary(first.saturating_add(after));
    let shown = &completion[start..end];
    let mut pieces = Vec::new();
    let mut at = 0;
    for found in reflections(shown) {
        pieces.push(text::lines(&shown[at..found.start]));
        pieces.push(text::lines(&shown[found.clone()]));
        at = found.end;
    }
    pieces.push(text::lines(&shown[at..]));
    if start > 0 {
        pieces[0].insert(0, '…');
    }
    if end < completion.len()
        && let Some(last) = pieces.last_mut()
    {
        last.push('…');
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reflection_words_are_every_other_piece() {
        let expected = ["1+1=3. ", "Wait", ", ", "let me check", "\\u{1b}: 2"];
        assert_eq!(pieces("1+1=3. Wait, let me check\u{1b}: 2"), expected);
        assert_eq!(pieces("Wait"), ["", "Wait", ""]);
        assert_eq!(pieces("none"), ["none"]);
    }

    #[test]
    fn a_long_completion_is_cut_around_the_first_of_them() {
        let filler = "é".repeat(10_000);
        let pieces = pieces(&format!("{filler} wait {filler}"));
        assert_eq!(pieces[1], "wait");
        assert!(pieces[0].starts_with("…é") && pieces[2].ends_with("é…"), "{pieces:?}");
        assert!(pieces.concat().len() < SHOWN_BYTES[0] + SHOWN_BYTES[1] + 10);
    }
}
