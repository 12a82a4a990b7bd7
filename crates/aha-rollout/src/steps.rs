//! What each step right of the sampler adds to a batch of rollouts.

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{Field, Schema};

use crate::view::RolloutsView;
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

/// What a critic made of one completion: a number for each of its tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Appraisal {
    /// Their advantages.
    pub advantages: Vec<f32>,
    /// What it expected before them.
    pub values: Vec<f32>,
}

impl Appraisal {
    /// The mean advantage; 0 of no tokens.
    fn mean(&self) -> f64 {
        let sum: f64 = self.advantages.iter().map(|&advantage| f64::from(advantage)).sum();
        sum / self.advantages.len().max(1) as f64
    }
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

/// [`schema::scored`] rows with their advantages, one for all tokens of a completion: [`schema::grouped`].
pub fn add_advantages(scored: &RecordBatch, advantages: &[Option<f64>]) -> Result<RecordBatch> {
    let none = || rows::maybe_lists_f32(advantages.iter().map(|_| None));
    let columns = vec![rows::numbers(advantages.iter().copied()), none(), none()];
    add_grouped(scored, columns)
}

fn add_grouped(scored: &RecordBatch, columns: Vec<ArrayRef>) -> Result<RecordBatch> {
    let target = schema::grouped(&schema::reward_names(&scored.schema()))?;
    add(scored, &target, columns)
}

/// [`schema::grouped`] rows with other advantages in place of theirs.
pub fn replace_advantages(
    grouped: &RecordBatch,
    advantages: &[Option<f64>],
) -> Result<RecordBatch> {
    add_advantages(&without_advantages(grouped)?, advantages)
}

/// [`schema::grouped`] rows with what a critic made of them in place of their advantages; those that it wasn't asked
/// about keep theirs.
pub fn appraise(grouped: &RecordBatch, appraisals: &[Option<Appraisal>]) -> Result<RecordBatch> {
    let scored = without_advantages(grouped)?;
    let view = RolloutsView::new(grouped, schema::Progress::Grouped)?;
    if view.rows_count() != appraisals.len() {
        let (found, rows) = (appraisals.len(), view.rows_count());
        return Err(Error::bug(format!("{found} appraisals for {rows} rows")));
    }
    let advantages = appraisals.iter().enumerate().map(|(row, found)| match found {
        Some(found) => Some(found.mean()),
        None => view.advantage(row),
    });
    let lists = |of: fn(&Appraisal) -> &[f32]| {
        rows::maybe_lists_f32(appraisals.iter().map(|found| found.as_ref().map(of)))
    };
    let columns = vec![
        rows::numbers(advantages),
        lists(|found| &found.advantages),
        lists(|found| &found.values),
    ];
    add_grouped(&scored, columns)
}

fn without_advantages(grouped: &RecordBatch) -> Result<RecordBatch> {
    let Ok(at) = grouped.schema_ref().index_of(col::ADVANTAGE) else {
        return Err(Error::bug("rows without advantages have none to replace"));
    };
    grouped
        .project(&(0..at).collect::<Vec<_>>())
        .map_err(|error| Error::bug(format!("columns of rows can't be chosen: {error}")))
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

/// Rows of any step as rows of `step`, which took them. Their identities stay.
pub fn set_step(batch: &RecordBatch, step: u64) -> Result<RecordBatch> {
    let Ok(at) = batch.schema_ref().index_of(col::STEP) else {
        return Err(Error::bug("rows without a step have none to set"));
    };
    let mut columns = batch.columns().to_vec();
    columns[at] = rows::whole((0..batch.num_rows()).map(|_| step));
    RecordBatch::try_new(batch.schema(), columns)
        .map_err(|error| Error::bug(format!("columns don't fit their fields: {error}")))
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
    fn a_critic_s_advantages_stand_beside_their_mean() {
        let sampled = rows::tests::examples(2, 3);
        let scored = add_scores(&sampled, &names(), &scores(3)).unwrap();
        let grouped = add_advantages(&scored, &[Some(0.0), None, Some(1.0)]).unwrap();
        // The third has two tokens.
        let appraisal = Appraisal { advantages: vec![0.5, -1.0], values: vec![0.0, 2.0] };
        let appraised = appraise(&grouped, &[None, None, Some(appraisal)]).unwrap();
        assert_eq!(appraised.schema(), grouped.schema());
        let view = RolloutsView::new(&appraised, schema::Progress::Grouped).unwrap();
        assert_eq!([0, 1, 2].map(|row| view.advantage(row)), [Some(0.0), None, Some(-0.25)]);
        assert_eq!(view.completion_advantages(2), Some(&[0.5, -1.0][..]));
        assert_eq!(view.completion_values(2), Some(&[0.0, 2.0][..]));
        assert_eq!((view.completion_advantages(1), view.completion_values(0)), (None, None));
        let again = replace_advantages(&appraised, &[Some(0.0), None, Some(1.0)]).unwrap();
        assert!(again == grouped && appraised != grouped);
        assert!(appraise(&grouped, &[None]).is_err());
        assert!(appraise(&scored, &[None, None, None]).is_err());
        let few = Appraisal { advantages: vec![0.5], values: vec![0.0] };
        let few = appraise(&grouped, &[None, None, Some(few)]).unwrap();
        assert!(RolloutsView::new(&few, schema::Progress::Grouped).is_err());
    }

    #[test]
    fn rows_keep_their_identity_in_the_step_that_takes_them() {
        let sampled = rows::tests::examples(2, 3);
        let taken = set_step(&sampled, 5).unwrap();
        assert_eq!(taken.schema(), sampled.schema());
        let view = RolloutsView::new(&taken, schema::Progress::Sampled).unwrap();
        assert_eq!((view.step(1), view.rollout_id(1)), (5, "zero/2/p17/1"));
        assert!(set_step(&sampled.project(&[0]).unwrap(), 5).is_err());
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
