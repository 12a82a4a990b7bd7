//! What each step right of the sampler adds to a batch of rollouts.

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{Field, Schema};

use crate::{Error, Result, col, extend, rows, schema};

/// The rewards of one completion.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// Score of each part, in the order of the stage's rewards; none where it could not be scored.
    pub parts: Vec<Option<f64>>,
    /// Their weighted sum; none where a part that it needs is missing.
    pub reward: Option<f64>,
    /// Why a part is missing.
    pub error: Option<String>,
}

/// What the learner did with one completion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A gradient held it.
    Trained,
    /// It was left out, for this reason.
    Skipped(String),
}

/// [`schema::sampled`] rows with their rewards: [`schema::scored`].
pub fn add_scores(
    sampled: &RecordBatch,
    reward_names: &[String],
    scores: &[Scores],
) -> Result<RecordBatch> {
    let target = schema::scored(reward_names)?;
    for (row, score) in scores.iter().enumerate() {
        if score.parts.len() != reward_names.len() {
            return Err(Error::bug(format!(
                "row {row} has {} reward parts, its stage has {}",
                score.parts.len(),
                reward_names.len()
            )));
        }
    }
    let mut columns: Vec<ArrayRef> = (0..reward_names.len())
        .map(|part| rows::numbers(scores.iter().map(|s| s.parts[part])))
        .collect();
    columns.push(rows::maybe_text(scores.iter().map(|s| s.error.as_deref())));
    columns.push(rows::numbers(scores.iter().map(|s| s.reward)));
    add(sampled, &target, columns)
}

/// [`schema::scored`] rows with their advantages: [`schema::grouped`].
pub fn add_advantages(scored: &RecordBatch, advantages: &[Option<f64>]) -> Result<RecordBatch> {
    let target = schema::grouped(&schema::reward_names(&scored.schema()))?;
    add(scored, &target, vec![rows::numbers(advantages.iter().copied())])
}

/// [`schema::grouped`] rows with other advantages in place of theirs.
pub fn replace_advantages(
    grouped: &RecordBatch,
    advantages: &[Option<f64>],
) -> Result<RecordBatch> {
    let Ok(at) = grouped.schema_ref().index_of(col::ADVANTAGE) else {
        return Err(Error::bug("rows without advantages have none to replace"));
    };
    let others: Vec<usize> = (0..grouped.num_columns()).filter(|&i| i != at).collect();
    let scored = grouped
        .project(&others)
        .map_err(|error| Error::bug(format!("columns of rows can't be chosen: {error}")))?;
    add_advantages(&scored, advantages)
}

/// [`schema::grouped`] rows with what the learner did: [`schema::rollouts`].
pub fn add_outcomes(grouped: &RecordBatch, outcomes: &[Outcome]) -> Result<RecordBatch> {
    let target = schema::rollouts(&schema::reward_names(&grouped.schema()))?;
    let is_trained = rows::booleans(outcomes.iter().map(|o| *o == Outcome::Trained));
    let skip_reason = rows::maybe_text(outcomes.iter().map(|outcome| match outcome {
        Outcome::Trained => None,
        Outcome::Skipped(reason) => Some(reason.as_str()),
    }));
    add(grouped, &target, vec![is_trained, skip_reason])
}

/// Rows that will never be trained on (those of a `sample` or `eval` stage) as whole rows of
/// `rollouts`: no advantage, left out for `reason`.
pub fn add_untrained(scored: &RecordBatch, reason: &str) -> Result<RecordBatch> {
    let grouped = add_advantages(scored, &vec![None; scored.num_rows()])?;
    let outcomes = vec![Outcome::Skipped(reason.to_owned()); scored.num_rows()];
    add_outcomes(&grouped, &outcomes)
}

fn add(batch: &RecordBatch, target: &Schema, columns: Vec<ArrayRef>) -> Result<RecordBatch> {
    let have = batch.schema();
    let known = target.fields().len() - columns.len();
    if have.fields()[..] != target.fields()[..known] {
        let names: Vec<&str> = have.fields().iter().map(|f| f.name().as_str()).collect();
        return Err(Error::bug(format!(
            "rows before `{}` must have the columns of the step left of it; they have {}",
            target.field(known).name(),
            names.join(", ")
        )));
    }
    let fields = target.fields()[known..].iter().map(|f| Field::clone(f));
    extend::with_columns(batch, fields.zip(columns).collect())
}

/// Whether `batch` has a reward in every row, so that its groups can be normalised.
pub fn is_fully_scored(batch: &RecordBatch) -> bool {
    batch.column_by_name(col::REWARD).is_some_and(|column| column.null_count() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        vec!["math".to_owned()]
    }

    fn scores(n: usize) -> Vec<Scores> {
        vec![Scores { parts: vec![Some(1.0)], reward: Some(1.0), error: None }; n]
    }

    #[test]
    fn steps_lead_to_the_whole_row() {
        let sampled = rows::tests::examples(2, 3);
        let scored = add_scores(&sampled, &names(), &scores(3)).unwrap();
        assert_eq!(scored.schema(), schema::scored(&names()).unwrap());
        assert!(is_fully_scored(&scored) && !is_fully_scored(&sampled));
        let grouped = add_advantages(&scored, &[Some(0.0), None, Some(1.0)]).unwrap();
        assert_eq!(grouped.schema(), schema::grouped(&names()).unwrap());
        let replaced = replace_advantages(&grouped, &[Some(2.0), Some(1.0), None]).unwrap();
        let again = replace_advantages(&replaced, &[Some(0.0), None, Some(1.0)]).unwrap();
        assert!(replaced != grouped && again == grouped);
        assert!(replace_advantages(&scored, &[None; 3]).is_err());
        let outcomes = [Outcome::Trained, Outcome::Skipped("no_signal".into()), Outcome::Trained];
        let trained = add_outcomes(&grouped, &outcomes).unwrap();
        assert_eq!(trained.schema(), schema::rollouts(&names()).unwrap());
        let untrained = add_untrained(&scored, "sample_only").unwrap();
        assert_eq!(untrained.schema(), trained.schema());
    }

    #[test]
    fn a_step_in_the_wrong_order_or_of_another_length_is_refused() {
        let sampled = rows::tests::examples(2, 3);
        assert!(add_advantages(&sampled, &[None; 3]).is_err());
        assert!(add_scores(&sampled, &names(), &scores(2)).is_err());
        let ragged = vec![Scores::default(); 3];
        assert!(add_scores(&sampled, &names(), &ragged).is_err());
        let scored = add_scores(&sampled, &names(), &scores(3)).unwrap();
        assert!(add_scores(&scored, &names(), &scores(3)).is_err());
    }
}
