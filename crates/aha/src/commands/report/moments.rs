//! "Aha moments": the first steps at which a right answer looks back at itself.

use aha_data::Session;
use aha_flow::pipeline::Pipeline;
use aha_reward::text::reflections;
use serde::{Deserialize, Serialize};

use super::ask;
use super::look::{Looked, Step};
use super::rules::Rules;
use crate::text;

/// Steps of a stage that are shown.
const STEPS_MAX: usize = 3;
/// Text of a completion that is shown, around the first reflection word, in bytes.
const SHOWN_BYTES: [usize; 2] = [2500, 3500];
/// Text of a problem and of a reference answer, in bytes.
const PROBLEM_BYTES_MAX: usize = 3000;

/// What an `rl` stage has of them.
#[derive(Serialize)]
pub struct Stage {
    /// The stage.
    pub stage: String,
    /// The reward parts that say what is right; none where none compares with answers.
    pub rewards: Vec<String>,
    /// Steps of which every completion was looked at, and steps that there are.
    pub looked_steps: [usize; 2],
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
struct Row {
    prompt: String,
    answer: Option<String>,
    completion: String,
}

/// Those of every `rl` stage that has sampled.
pub async fn gather(
    session: &Session,
    looked: &[Looked],
    pipeline: Option<&Pipeline>,
) -> anyhow::Result<Vec<Stage>> {
    let mut found = Vec::new();
    for table in looked.iter().filter(|looked| looked.table.kind == "rl") {
        let with_texts = table.steps.iter().filter(|step| step.texts.is_some());
        let rules = Rules::of(&table.table.stage, pipeline).known(&table.reward_names);
        let mut moments = Vec::new();
        for step in with_texts.clone().filter(|step| is_moment(step)).take(STEPS_MAX) {
            moments.extend(moment(session, step).await?);
        }
        found.push(Stage {
            stage: table.table.stage.clone(),
            rewards: rules.names(),
            looked_steps: [with_texts.count(), table.steps.len()],
            moments,
        });
    }
    Ok(found)
}

fn is_moment(step: &Step) -> bool {
    step.texts.as_ref().is_some_and(|texts| texts.first_moment.is_some())
}

/// The first moment of a step.
async fn moment(session: &Session, step: &Step) -> anyhow::Result<Option<Moment>> {
    let Some(texts) = &step.texts else { return Ok(None) };
    let Some((prompt_id, sample_idx)) = &texts.first_moment else { return Ok(None) };
    session.register_parts(ask::SHOWN, &step.parts)?;
    let rows: Vec<Row> = ask::rows(
        session,
        &format!(
            "SELECT prompt, answer, completion FROM {} \
             WHERE step = {} AND prompt_id = {} AND sample_idx = {sample_idx} LIMIT 1",
            ask::name(ask::SHOWN),
            step.step,
            ask::text(prompt_id)
        ),
    )
    .await?;
    Ok(rows.into_iter().next().map(|row| Moment {
        step: step.step,
        count: texts.moments,
        prompt_id: text::one_line(prompt_id),
        prompt: shown(&row.prompt),
        answer: row.answer.as_deref().map(shown),
        sample_idx: *sample_idx,
        pieces: pieces(&row.completion),
    }))
}

/// The beginning of a text, made harmless.
fn shown(whole: &str) -> String {
    let end = whole.floor_char_boundary(PROBLEM_BYTES_MAX);
    text::lines(&whole[..end]) + if end < whole.len() { "…" } else { "" }
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
    fn a_long_problem_is_cut() {
        let cut = shown(&"é".repeat(PROBLEM_BYTES_MAX));
        assert_eq!((cut.len(), cut.ends_with('…')), (PROBLEM_BYTES_MAX + '…'.len_utf8(), true));
        assert_eq!(shown("é\u{1b}"), "é\\u{1b}");
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
