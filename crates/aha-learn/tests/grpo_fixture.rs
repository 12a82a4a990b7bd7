//! Loss, per-token gradients, clip metrics and advantages are those of TRL 1.16.
//!
//! `fixtures/grpo_loss.json` holds what TRL's own `_compute_loss` gave in f64, for one of
//! `gradient_accumulation_steps` micro-batches. Inputs are f32 in both programs; our sums are f64, our
//! gradients f32, so the loss agrees to 1e-12 and a gradient to its rounding, 6e-8 of its size.

#![expect(clippy::unwrap_used, reason = "a fixture of another shape fails the test")]

use aha_learn::advantage::{AdvantageRule, Sample, Scale, advantages};
use aha_learn::objective::{Aggregation, Normaliser, Objective, RatioLevel, SequenceTerms, loss};
use aha_learn::preset::Preset;
use serde_json::Value;

const FIXTURE: &str = include_str!("fixtures/grpo_loss.json");
const CASE_COUNT: usize = 75;

fn fixture() -> Value {
    serde_json::from_str(FIXTURE).unwrap()
}

fn row(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

fn rows(value: &Value) -> Vec<Vec<f32>> {
    value.as_array().unwrap().iter().map(row).collect()
}

fn number(case: &Value, key: &str) -> Option<f64> {
    case.get(key).map(|x| x.as_f64().unwrap())
}

fn count(case: &Value, key: &str) -> usize {
    case[key].as_u64().unwrap() as usize
}

/// TRL's configuration of a case, on top of the preset.
fn objective(case: &Value) -> Objective {
    let trl = Preset::Trl1_16.objective(8);
    let sequence = case.get("ils").is_some_and(|level| level == "sequence");
    Objective {
        clip_high: number(case, "eh").unwrap_or(trl.clip_high),
        delta: number(case, "delta"),
        ratio: if sequence { RatioLevel::Sequence } else { trl.ratio },
        kl_coef: number(case, "beta").unwrap(),
        kl_times_ratio: case.get("use_bias_correction_kl").is_none_or(|b| b.as_bool().unwrap()),
        aggregation: match case["loss_type"].as_str().unwrap() {
            "grpo" => Aggregation::SequenceMean,
            "bnpo" => Aggregation::TokenMean,
            "dapo" => Aggregation::RolloutTokenMean,
            "dr_grpo" => Aggregation::Constant { length_tokens: 8 },
            other => panic!("loss type {other}"),
        },
        ..trl
    }
}

/// The divisors of a minibatch of which the fixture's rows are one of equal micro-batches.
fn normaliser(case: &Value, objective: &Objective, lens_tokens: &[usize]) -> Normaliser {
    let micro_batches = count(case, "gradient_accumulation_steps");
    let normaliser = Normaliser::of(objective, &lens_tokens.repeat(micro_batches));
    match case.get("num_items_in_batch") {
        Some(_) => {
            let minibatches = count(case, "steps_per_generation") / micro_batches;
            normaliser.with_rollout(count(case, "num_items_in_batch"), minibatches)
        }
        None => normaliser,
    }
}

#[test]
fn every_case_of_trl_is_met() {
    let fixture = fixture();
    let inputs = &fixture["inputs"];
    let [logps, old, reference] = ["logps", "old_logps", "ref_logps"].map(|key| rows(&inputs[key]));
    let masks: Vec<Vec<bool>> =
        rows(&inputs["mask"]).iter().map(|mask| mask.iter().map(|&m| m == 1.0).collect()).collect();
    let advantages = row(&inputs["advantages"]);
    let cases = fixture["cases"].as_object().unwrap();
    assert_eq!(cases.len(), CASE_COUNT);
    for (name, case) in cases {
        let objective = objective(case);
        let is_old_given = case["old_logps_given"].as_bool().unwrap();
        let terms: Vec<SequenceTerms<'_>> = (0..logps.len())
            .map(|i| SequenceTerms {
                logps: &logps[i],
                old_logps: is_old_given.then_some(&old[i][..]),
                ref_logps: Some(&reference[i]),
                advantage: advantages[i],
                mask: Some(&masks[i]),
                ..SequenceTerms::default()
            })
            .collect();
        let lens: Vec<usize> = terms.iter().map(SequenceTerms::trained_len_tokens).collect();
        let out = loss(&objective, &terms, &normaliser(case, &objective, &lens));

        let expected = case["loss_f64"].as_f64().unwrap();
        assert!((out.loss() - expected).abs() <= 1e-12, "{name}: {} {expected}", out.loss());
        let gradients = case["grad_f64"].as_array().unwrap();
        let expected = gradients.iter().flat_map(|row| row.as_array().unwrap());
        let expected: Vec<f64> = expected.map(|x| x.as_f64().unwrap()).collect();
        assert_eq!(out.dlogps.len(), expected.len());
        for (idx, (found, expected)) in out.dlogps.iter().zip(expected).enumerate() {
            let error = (f64::from(*found) - expected).abs();
            assert!(error <= 1e-12 + 1e-7 * expected.abs(), "{name} {idx}: {found} {expected}");
        }
        if let Some(metrics) = case.get("clip_metrics") {
            let totals = out.totals();
            for (key, found) in [
                ("clip_ratio/low_mean", totals.clip_low_fraction()),
                ("clip_ratio/high_mean", totals.clip_high_fraction()),
                ("clip_ratio/region_mean", totals.clip_fraction()),
            ] {
                assert_eq!(Some(found), number(metrics, key), "{name} {key}");
            }
        }
    }
}

#[test]
fn advantages_are_those_of_trl() {
    let fixture = fixture();
    let fixture = &fixture["advantages"];
    let sample = |reward: f32| Sample { reward: Some(reward), len_tokens: 1 };
    let rewards: Vec<Sample> = row(&fixture["rewards"]).into_iter().map(sample).collect();
    let groups: Vec<&[Sample]> = rewards.chunks(count(fixture, "num_generations")).collect();
    for (key, scale) in [("group", Scale::Group), ("batch", Scale::Batch), ("none", Scale::None)] {
        let rule = AdvantageRule { scale, ..Preset::Trl1_16.objective(8).advantage };
        let found = advantages(&groups, &rule).unwrap();
        let found: Vec<f32> = found.iter().flat_map(|g| &g.rows).map(|row| row.value).collect();
        // TRL computed these in f32.
        for (found, expected) in found.iter().zip(row(&fixture[key])) {
            assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{key}: {found} {expected}");
        }
        assert_eq!(found.len(), rewards.len());
    }
}
