//! Checks of the loss against a second, naive f64 version and its central differences.
//!
//! The naive version is written from the formulas in the docs, a whole minibatch at once, with no
//! derivative in it. With a step of 1e-6 the error of a central difference is near 1e-10 here; what
//! remains is the rounding of our gradients to f32, 6e-8 of their size.

use super::{
    Aggregation, EntropyMean, Importance, ImportanceMode, KlEstimator, Normaliser, Objective,
    RatioLevel, SequenceTerms, Surrogate, Totals, loss,
};
use crate::advantage::{AdvantageRule, Baseline, Scale, SingleRule, StdEstimator};
use crate::preset::Preset;
use crate::value::ValueRule;

struct Completion {
    logps: Vec<f32>,
    old_logps: Vec<f32>,
    ref_logps: Vec<f32>,
    entropies: Vec<f32>,
    divergences: Vec<f32>,
    behaviour_logps: Vec<f32>,
    mask: Vec<bool>,
    advantage: f32,
    /// One for each token, in place of the completion's.
    advantages: Option<Vec<f32>>,
}

impl Completion {
    fn advantage_at(&self, t: usize) -> f64 {
        f64::from(self.advantages.as_ref().map_or(self.advantage, |all| all[t]))
    }

    fn terms(&self) -> SequenceTerms<'_> {
        SequenceTerms {
            logps: &self.logps,
            old_logps: Some(&self.old_logps),
            behaviour_logps: Some(&self.behaviour_logps),
            ref_logps: Some(&self.ref_logps),
            entropies: Some(&self.entropies),
            divergences: Some(&self.divergences),
            advantage: self.advantage,
            token_advantages: self.advantages.as_deref(),
            mask: Some(&self.mask),
        }
    }
}

/// Six completions; the fifth is masked whole, the last is empty. Ratios reach from 0.4 to 5.
fn minibatch() -> Vec<Completion> {
    let noise = |i: usize, t: usize, k: f64| (i as f64 * 1.7 + t as f64 * 2.3 + k * 5.1).sin();
    let advantages = [1.25, -0.75, -1.5, 0.4, 0.9, -0.3];
    [6, 4, 2, 5, 3, 0]
        .into_iter()
        .enumerate()
        .map(|(i, len)| {
            let row = |f: &dyn Fn(usize) -> f64| (0..len).map(|t| f(t) as f32).collect::<Vec<_>>();
            let logp = |t: usize| -1.5 + noise(i, t, 0.0);
            let spread = if i == 2 { 1.6 } else { 0.4 };
            let old = |t: usize| logp(t) + spread * noise(i, t, 1.0);
            Completion {
                logps: row(&logp),
                old_logps: row(&old),
                // Weights from 0.4 to 2.5.
                behaviour_logps: row(&|t| old(t) - 0.9 * noise(i, t, 4.0)),
                ref_logps: row(&|t| logp(t) + 0.5 * noise(i, t, 2.0)),
                entropies: row(&|t| 1.2 + noise(i, t, 3.0)),
                divergences: row(&|t| 1.1 + noise(i, t, 5.0)),
                mask: (0..len).map(|t| i != 4 && t != 3).collect(),
                advantage: advantages[i],
                advantages: None,
            }
        })
        .collect()
}

fn normaliser(objective: &Objective, completions: &[Completion]) -> Normaliser {
    let lens: Vec<usize> = completions.iter().map(|c| c.terms().trained_len_tokens()).collect();
    Normaliser::of(objective, &lens).with_rollout(ROLLOUT_TOKENS, ROLLOUT_MINIBATCHES)
}

const ROLLOUT_TOKENS: usize = 50;
const ROLLOUT_MINIBATCHES: usize = 4;

/// The loss of the whole minibatch at other log-probs, entropies and divergences, in f64.
fn naive(
    o: &Objective,
    batch: &[Completion],
    logps: &[Vec<f64>],
    [entropies, divergences]: [&[Vec<f64>]; 2],
) -> f64 {
    let counts: Vec<f64> =
        batch.iter().map(|c| c.mask.iter().filter(|&&m| m).count() as f64).collect();
    let tokens: f64 = counts.iter().sum();
    let rows = counts.iter().filter(|&&n| o.count_empty_sequences || n > 0.0).count() as f64;
    let mut total = 0.0;
    for (i, c) in batch.iter().enumerate() {
        let factor = match o.aggregation {
            Aggregation::SequenceMean => 1.0 / rows / counts[i].max(1.0),
            Aggregation::TokenMean => 1.0 / tokens,
            Aggregation::RolloutTokenMean => ROLLOUT_MINIBATCHES as f64 / ROLLOUT_TOKENS as f64,
            Aggregation::Constant { length_tokens } => 1.0 / rows / f64::from(length_tokens),
        };
        let entropy_factor = match o.entropy_mean {
            EntropyMean::Tokens => 1.0 / tokens,
            EntropyMean::AsLoss => factor,
        };
        let kept: Vec<usize> = (0..c.mask.len()).filter(|&t| c.mask[t]).collect();
        let log_ratios: Vec<f64> =
            (0..c.mask.len()).map(|t| logps[i][t] - f64::from(c.old_logps[t])).collect();
        let mean = |x: &[f64]| kept.iter().map(|&t| x[t]).sum::<f64>() / counts[i].max(1.0);
        let bound = o.log_ratio_clamp.unwrap_or(f64::INFINITY);
        let ratio = |log_ratios: &[f64], t: usize| {
            let is_of_token = o.ratio == RatioLevel::Token;
            let log_ratio = if is_of_token { log_ratios[t] } else { mean(log_ratios) };
            log_ratio.clamp(-bound, bound).exp()
        };
        // What is a constant in the gradient is computed from the log-probs that don't move.
        let fixed: Vec<f64> =
            (0..c.mask.len()).map(|t| f64::from(c.logps[t]) - f64::from(c.old_logps[t])).collect();
        let gap = |t: usize| f64::from(c.old_logps[t]) - f64::from(c.behaviour_logps[t]);
        let gap_of_all: f64 = kept.iter().map(|&t| gap(t)).sum();
        for &t in &kept {
            let rho = ratio(&log_ratios, t);
            let a = c.advantage_at(t);
            let clip = |rho: f64| rho.clamp(1.0 - o.clip_low, 1.0 + o.clip_high);
            let mut policy = match o.surrogate {
                Surrogate::Clip => {
                    -(rho.min(o.delta.unwrap_or(f64::INFINITY)) * a).min(clip(rho) * a)
                }
                Surrogate::Cispo => -clip(ratio(&fixed, t)) * a * logps[i][t],
            };
            if a < 0.0 {
                policy = policy.min(-o.dual_clip.unwrap_or(f64::INFINITY) * a);
            }
            let mut kl = naive_kl(o, f64::from(c.ref_logps[t]) - logps[i][t]);
            if o.kl_times_ratio {
                kl *= rho;
            }
            let is_of_token = o.importance_level == RatioLevel::Token;
            let weight = if is_of_token { gap(t) } else { gap_of_all }.exp();
            let bounded = weight.clamp(o.importance_floor, o.importance_cap);
            let weight = match o.importance_mode {
                ImportanceMode::Mask if weight != bounded => 0.0,
                _ => bounded,
            };
            let kl_coef = if o.kl_in_reward { 0.0 } else { o.kl_coef };
            total += factor * (weight * policy + kl_coef * kl);
            total -= entropy_factor * o.entropy_coef * entropies[i][t];
            total += factor * o.distill_coef * divergences[i][t];
        }
    }
    total
}

/// The KL estimate, with `d = ref - logp`.
fn naive_kl(o: &Objective, d: f64) -> f64 {
    match o.kl_estimator {
        KlEstimator::K1 => -d,
        KlEstimator::K2 => 0.5 * d.powi(2),
        KlEstimator::K3 => {
            let bound = o.kl_log_ratio_clamp.unwrap_or(f64::INFINITY);
            let d = d.clamp(-bound, bound);
            (d.exp() - d - 1.0).min(o.kl_value_clamp.unwrap_or(f64::INFINITY))
        }
    }
}

/// Every option of the loss: its name, an objective with it and one without.
pub(super) fn loss_variants() -> Vec<(&'static str, Objective, Objective)> {
    // A KL and an entropy term large enough to be seen.
    let base = Objective { kl_coef: 0.5, entropy_coef: 0.1, ..Preset::DeepseekR1.objective(256) };
    let sequence = Objective { ratio: RatioLevel::Sequence, ..base.clone() };
    let times_ratio = Objective { kl_times_ratio: true, ..base.clone() };
    let verl = Objective { kl_coef: 0.5, ..Preset::Verl0_9.objective(256) };
    let token_mean = Objective { aggregation: Aggregation::TokenMean, ..base.clone() };
    let constant = Aggregation::Constant { length_tokens: 8 };
    let constant = Objective { aggregation: constant, ..base.clone() };
    let cispo = Objective { surrogate: Surrogate::Cispo, ..base.clone() };
    let mut all = Vec::new();
    let mut add = |name, without: &Objective, change: &dyn Fn(&mut Objective)| {
        let mut with = without.clone();
        change(&mut with);
        all.push((name, with, without.clone()));
    };
    add("clip_low", &base, &|o| o.clip_low = 0.05);
    add("no lower clip", &base, &|o| o.clip_low = 10.0);
    add("clip_high", &base, &|o| o.clip_high = 0.05);
    add("dual_clip", &base, &|o| o.dual_clip = Some(3.0));
    add("delta", &base, &|o| o.delta = Some(1.1));
    add("delta above the clip", &base, &|o| o.delta = Some(2.0));
    add("sequence ratio", &base, &|o| o.ratio = RatioLevel::Sequence);
    add("log_ratio_clamp", &base, &|o| o.log_ratio_clamp = Some(0.15));
    add("log_ratio_clamp, sequence", &sequence, &|o| o.log_ratio_clamp = Some(0.05));
    add("tight clip, sequence", &sequence, &|o| {
        o.clip_low = 0.001;
        o.clip_high = 0.001;
    });
    add("kl_times_ratio, sequence", &sequence, &|o| o.kl_times_ratio = true);
    add("importance_cap", &base, &|o| o.importance_cap = 1.1);
    add("importance_cap, sequence", &sequence, &|o| o.importance_cap = 1.05);
    add("importance_floor", &base, &|o| o.importance_floor = 0.9);
    add("importance_mode", &base, &|o| o.importance_mode = ImportanceMode::Mask);
    add("importance_level", &base, &|o| o.importance_level = RatioLevel::Sequence);
    add("masked sequences", &base, &|o| {
        o.importance_level = RatioLevel::Sequence;
        o.importance_mode = ImportanceMode::Mask;
        o.importance_floor = 0.5;
    });
    add("cispo", &base, &|o| o.surrogate = Surrogate::Cispo);
    add("cispo with another clip", &cispo, &|o| o.clip_high = 0.05);
    add("cispo without a lower clip", &cispo, &|o| o.clip_low = 1.0);
    add("cispo, sequence", &cispo, &|o| o.ratio = RatioLevel::Sequence);
    add("no kl", &base, &|o| o.kl_coef = 0.0);
    add("kl_coef", &base, &|o| o.kl_coef = 0.25);
    add("kl_in_reward", &base, &|o| o.kl_in_reward = true);
    add("k1", &base, &|o| o.kl_estimator = KlEstimator::K1);
    add("k2", &base, &|o| o.kl_estimator = KlEstimator::K2);
    add("kl_times_ratio", &base, &|o| o.kl_times_ratio = true);
    add("k1 times ratio", &times_ratio, &|o| o.kl_estimator = KlEstimator::K1);
    add("k2 times ratio", &times_ratio, &|o| o.kl_estimator = KlEstimator::K2);
    add("kl_log_ratio_clamp", &base, &|o| o.kl_log_ratio_clamp = Some(0.2));
    add("kl_value_clamp", &base, &|o| o.kl_value_clamp = Some(0.02));
    add("distill", &base, &|o| o.distill_coef = 0.7);
    add("distill, token mean", &token_mean, &|o| o.distill_coef = 1.3);
    add("no entropy", &base, &|o| o.entropy_coef = 0.0);
    add("entropy_coef", &base, &|o| o.entropy_coef = 0.2);
    add("entropy_mean", &base, &|o| o.entropy_mean = EntropyMean::AsLoss);
    add("token mean", &base, &|o| o.aggregation = Aggregation::TokenMean);
    add("rollout token mean", &base, &|o| o.aggregation = Aggregation::RolloutTokenMean);
    add("constant", &base, &|o| o.aggregation = Aggregation::Constant { length_tokens: 8 });
    add("another constant", &constant, &|o| {
        o.aggregation = Aggregation::Constant { length_tokens: 16 };
    });
    add("count_empty_sequences", &base, &|o| o.count_empty_sequences = false);
    add("verl with another clip", &verl, &|o| o.clip_high = 0.05);
    all
}

/// [`loss_variants`] and every option of the advantage.
pub(super) fn variants() -> Vec<(&'static str, Objective, Objective)> {
    let mut all = loss_variants();
    let base = Preset::DeepseekR1.objective(256);
    let rule = base.advantage;
    for (name, advantage) in [
        ("leave one out", AdvantageRule { baseline: Baseline::LeaveOneOut, ..rule }),
        ("scale whiten", AdvantageRule { scale: Scale::Whiten, ..rule }),
        ("scale batch", AdvantageRule { scale: Scale::Batch, ..rule }),
        ("scale none", AdvantageRule { scale: Scale::None, ..rule }),
        ("std", AdvantageRule { std: StdEstimator::Sample, ..rule }),
        ("eps", AdvantageRule { eps: 0.5, ..rule }),
        ("no_signal_std_max", AdvantageRule { no_signal_std_max: 0.1, ..rule }),
        ("single", AdvantageRule { single: SingleRule::Reward, ..rule }),
    ] {
        all.push((name, Objective { advantage, ..base.clone() }, base.clone()));
    }
    let whitened = AdvantageRule { scale: Scale::Whiten, ..rule };
    for (name, baseline) in [("baseline batch", Baseline::Batch), ("no baseline", Baseline::None)] {
        let advantage = AdvantageRule { baseline, ..whitened };
        let without = Objective { advantage: whitened, ..base.clone() };
        all.push((name, Objective { advantage, ..base.clone() }, without));
    }
    let ppo = Preset::Ppo.objective(256);
    all.push(("a critic", ppo.clone(), Preset::ReinforcePlusPlus.objective(256)));
    for (name, value) in [
        ("gamma", ValueRule { gamma: 0.9, ..ppo.value }),
        ("lambda", ValueRule { lambda: 1.0, ..ppo.value }),
        ("value_clip", ValueRule { clip: Some(0.5), ..ppo.value }),
        ("no value_clip", ValueRule { clip: None, ..ppo.value }),
    ] {
        all.push((name, Objective { value, ..ppo.clone() }, ppo.clone()));
    }
    let unscaled = AdvantageRule { scale: Scale::None, ..ppo.advantage };
    all.push(("no whitening", Objective { advantage: unscaled, ..ppo.clone() }, ppo));
    all
}

fn widen(rows: impl Iterator<Item = Vec<f32>>) -> Vec<Vec<f64>> {
    rows.map(|row| row.into_iter().map(f64::from).collect()).collect()
}

/// Fails unless loss and both gradients are those of [`naive`].
fn check(name: &str, objective: &Objective, batch: &[Completion], terms: &[SequenceTerms<'_>]) {
    const STEP: f64 = 1e-6;
    let out = loss(objective, terms, &normaliser(objective, batch));
    let logps = widen(batch.iter().map(|c| c.logps.clone()));
    let entropies = widen(batch.iter().map(|c| c.entropies.clone()));
    let divergences = widen(batch.iter().map(|c| c.divergences.clone()));
    let expected = naive(objective, batch, &logps, [&entropies, &divergences]);
    assert!((out.loss() - expected).abs() <= 1e-12, "{name}: {} {expected}", out.loss());

    let slope = |rows: &[Vec<f64>], i: usize, t: usize, f: &dyn Fn(&[Vec<f64>]) -> f64| {
        let mut moved = rows.to_vec();
        moved[i][t] = rows[i][t] + STEP;
        let above = f(&moved);
        moved[i][t] = rows[i][t] - STEP;
        (above - f(&moved)) / (2.0 * STEP)
    };
    let mut at = 0;
    for (i, row) in logps.iter().enumerate() {
        for t in 0..row.len() {
            let loss = |x: &[Vec<f64>]| naive(objective, batch, x, [&entropies, &divergences]);
            close(name, "dlogp", (i, t), out.dlogps[at], slope(&logps, i, t, &loss));
            let loss = |x: &[Vec<f64>]| naive(objective, batch, &logps, [x, &divergences]);
            let found = out.dentropies.as_ref().map_or(0.0, |dentropies| dentropies[at]);
            close(name, "dentropy", (i, t), found, slope(&entropies, i, t, &loss));
            let loss = |x: &[Vec<f64>]| naive(objective, batch, &logps, [&entropies, x]);
            let found = out.ddivergences.as_ref().map_or(0.0, |ddivergences| ddivergences[at]);
            close(name, "ddivergence", (i, t), found, slope(&divergences, i, t, &loss));
            at += 1;
        }
    }
    assert_eq!(at, out.dlogps.len());
}

fn close(name: &str, what: &str, at: (usize, usize), found: f32, expected: f64) {
    let error = (f64::from(found) - expected).abs();
    let tolerance = 2e-9 + 1e-6 * expected.abs();
    assert!(error <= tolerance, "{name}: {what} {at:?}: {found} {expected}");
}

#[test]
fn gradients_are_the_derivatives_of_the_loss_for_every_option() {
    let batch = minibatch();
    let terms: Vec<SequenceTerms<'_>> = batch.iter().map(Completion::terms).collect();
    for (name, with, without) in loss_variants() {
        check(name, &with, &batch, &terms);
        check(name, &without, &batch, &terms);
    }
    for preset in Preset::ALL {
        check(preset.name(), &preset.objective(256), &batch, &terms);
    }
}

/// Advantages of a completion's tokens, of both signs.
#[test]
fn a_token_has_its_own_advantage_where_there_is_one() {
    let mut batch = minibatch();
    let of_completions = gradients_of(&batch, &Preset::Ppo.objective(256));
    for (i, completion) in batch.iter_mut().enumerate() {
        let advantage = |t: usize| (1.3 * (i as f64 * 0.7 + t as f64 * 1.9).cos()) as f32;
        completion.advantages = Some((0..completion.logps.len()).map(advantage).collect());
    }
    let terms: Vec<SequenceTerms<'_>> = batch.iter().map(Completion::terms).collect();
    for (name, with, _) in loss_variants() {
        check(name, &with, &batch, &terms);
    }
    assert_ne!(gradients_of(&batch, &Preset::Ppo.objective(256)), of_completions);
    // The same one everywhere is the completion's.
    let plain = minibatch();
    for (completion, plain) in batch.iter_mut().zip(&plain) {
        completion.advantages = Some(vec![plain.advantage; plain.logps.len()]);
    }
    assert_eq!(gradients_of(&batch, &Preset::Ppo.objective(256)), of_completions);
}

/// The gradients of a minibatch.
fn gradients_of(batch: &[Completion], objective: &Objective) -> Vec<f32> {
    let terms: Vec<SequenceTerms<'_>> = batch.iter().map(Completion::terms).collect();
    loss(objective, &terms, &normaliser(objective, batch)).dlogps
}

#[test]
fn every_option_moves_the_gradients() {
    let batch = minibatch();
    let terms: Vec<SequenceTerms<'_>> = batch.iter().map(Completion::terms).collect();
    for (name, with, without) in loss_variants() {
        let run = |objective: &Objective| {
            let out = loss(objective, &terms, &normaliser(objective, &batch));
            (out.dlogps, out.dentropies, out.ddivergences)
        };
        assert_ne!(run(&with), run(&without), "{name}");
    }
}

#[test]
fn on_policy_the_ratio_is_one_and_has_a_gradient() {
    let mut batch = minibatch();
    let detached: Vec<Vec<f32>> = batch.iter().map(|c| c.logps.clone()).collect();
    for (completion, old_logps) in batch.iter_mut().zip(detached) {
        completion.old_logps = old_logps;
    }
    let terms: Vec<SequenceTerms<'_>> =
        batch.iter().map(|c| SequenceTerms { old_logps: None, ..c.terms() }).collect();
    for (name, with, _) in loss_variants() {
        check(name, &with, &batch, &terms);
        let totals = loss(&with, &terms, &normaliser(&with, &batch)).totals();
        assert_eq!((totals.ratio_mean(), totals.ratio_max), (1.0, 1.0));
        assert_eq!(totals.clip_fraction(), 0.0);
    }
}

#[test]
fn absent_masks_and_weights_are_all_true_and_one() {
    let mut batch = minibatch();
    for completion in &mut batch {
        completion.mask.fill(true);
        completion.behaviour_logps.clone_from(&completion.old_logps);
    }
    let absent = |c| SequenceTerms { mask: None, behaviour_logps: None, ..Completion::terms(c) };
    let terms: Vec<SequenceTerms<'_>> = batch.iter().map(absent).collect();
    for (name, with, _) in loss_variants() {
        check(name, &with, &batch, &terms);
    }
}

#[test]
fn any_micro_batch_split_gives_the_same_bits() {
    let batch = minibatch();
    let terms: Vec<SequenceTerms<'_>> = batch.iter().map(Completion::terms).collect();
    for (name, objective, _) in loss_variants() {
        let normaliser = normaliser(&objective, &batch);
        let whole = loss(&objective, &terms, &normaliser);
        // Each bit of `cuts` says whether a micro-batch ends after that completion.
        for cuts in 0..1_u32 << (terms.len() - 1) {
            let mut totals = Totals::default();
            let (mut dlogps, mut dentropies, mut ddivergences) =
                (Vec::new(), Vec::new(), Vec::new());
            let mut start = 0;
            for end in 1..=terms.len() {
                if end == terms.len() || cuts >> (end - 1) & 1 == 1 {
                    let out = loss(&objective, &terms[start..end], &normaliser);
                    out.sequences.iter().for_each(|sequence| totals.add(sequence));
                    dlogps.extend(out.dlogps);
                    dentropies.extend(out.dentropies.unwrap_or_default());
                    ddivergences.extend(out.ddivergences.unwrap_or_default());
                    start = end;
                }
            }
            let bits = |row: &[f32]| row.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&dlogps), bits(&whole.dlogps), "{name}");
            let expected = whole.dentropies.as_deref().unwrap_or_default();
            assert_eq!(bits(&dentropies), bits(expected), "{name}");
            let expected = whole.ddivergences.as_deref().unwrap_or_default();
            assert_eq!(bits(&ddivergences), bits(expected), "{name}");
            assert_eq!(totals.loss.to_bits(), whole.loss().to_bits(), "{name}");
            assert_eq!(totals, whole.totals(), "{name}");
        }
    }
}

#[test]
fn metrics_are_those_of_the_tokens() {
    let row = [0.0_f32; 4];
    let old = [0.5, -0.5, -2.0, 0.0].map(|x: f32| -x);
    let terms = SequenceTerms {
        logps: &row,
        old_logps: Some(&old),
        ref_logps: Some(&[0.0, 0.0, 0.0, 1.0]),
        entropies: Some(&[1.0, 2.0, 3.0, 6.0]),
        advantage: -1.0,
        ..SequenceTerms::default()
    };
    let objective = Objective { dual_clip: Some(1.5), ..Preset::DeepseekR1.objective(256) };
    let up = SequenceTerms { advantage: 1.0, ..terms };
    let normaliser = Normaliser::of(&objective, &[4, 4]);
    let totals = loss(&objective, &[terms, up], &normaliser).totals();
    // Ratios e^0.5, e^-0.5, e^-2, 1: with A < 0 two are clipped below and one is cut off at 1.5.
    assert_eq!((totals.token_count, totals.kl_count, totals.entropy_count), (8, 8, 8));
    assert_eq!(totals.clip_low_fraction(), 0.25);
    assert_eq!(totals.clip_high_fraction(), 0.125);
    assert_eq!(totals.clip_fraction(), 0.375);
    assert_eq!(totals.dual_clip_fraction(), 0.125);
    let ratios = [0.5_f64, -0.5, -2.0, 0.0].map(f64::exp);
    assert!((totals.ratio_mean() - ratios.iter().sum::<f64>() / 4.0).abs() < 1e-12);
    assert_eq!(totals.ratio_max, 0.5_f64.exp());
    assert!((totals.kl_mean().unwrap() - (1_f64.exp() - 2.0) / 4.0).abs() < 1e-12);
    assert_eq!(totals.entropy_mean(), Some(3.0));
}

/// With ratios of one the loss is the mean weighted advantage, so what is cut off can be read from it.
#[test]
fn importance_weights_are_cut_at_their_cap_and_measured() {
    let [old, behaviour] = [[-1.0, -1.0, -1.0, -9.0], [-1.5, -3.0, -0.5, -1.0_f32]];
    let mask = [true, true, true, false];
    let terms = SequenceTerms {
        logps: &old,
        behaviour_logps: Some(&behaviour),
        mask: Some(&mask),
        advantage: 1.0,
        ..SequenceTerms::default()
    };
    let run = |importance_cap: f64, terms: SequenceTerms<'_>| {
        let objective = Objective { kl_coef: 0.0, importance_cap, ..Preset::Dapo.objective(256) };
        let out = loss(&objective, &[terms], &Normaliser::of(&objective, &[3]));
        (-3.0 * out.loss(), out.totals().importance())
    };
    let [low, high] = [(-0.5_f64).exp(), 0.5_f64.exp()];
    for (cap, weights, cut_share) in [
        (100.0, [high, 2_f64.exp(), low], 0.0),
        (2.0, [high, 2.0, low], 1.0 / 3.0),
        (1.0, [1.0, 1.0, low], 2.0 / 3.0),
    ] {
        let (sum, importance) = run(cap, terms);
        let [importance, want] = [
            importance.unwrap(),
            Importance {
                mean: weights.iter().sum::<f64>() / 3.0,
                max: weights.iter().fold(0.0, |max: f64, w| max.max(*w)),
                cut_share,
                sampler_gap_mean: 1.0,
            },
        ];
        assert!((sum - 3.0 * want.mean).abs() < 1e-6, "cap {cap}: {sum}");
        assert_eq!(importance, want, "cap {cap}");
    }
    assert_eq!(run(2.0, SequenceTerms { behaviour_logps: None, ..terms }), (3.0, None));
    let broken = [-1.0, f32::NAN, -1.0, -1.0];
    let (sum, importance) = run(2.0, SequenceTerms { behaviour_logps: Some(&broken), ..terms });
    assert!(sum.is_nan() && importance.unwrap().max.is_nan());
}

#[test]
fn nothing_to_train_on_gives_zero_and_no_nan() {
    for (name, objective, _) in loss_variants() {
        let mask = [false; 2];
        let row = [-1.0; 2];
        let masked = SequenceTerms {
            logps: &row,
            ref_logps: Some(&row),
            entropies: Some(&row),
            divergences: Some(&row),
            mask: Some(&mask),
            advantage: 1.0,
            ..SequenceTerms::default()
        };
        let out = loss(&objective, &[masked], &Normaliser::of(&objective, &[0]));
        assert_eq!((out.loss(), &out.dlogps[..]), (0.0, &[0.0; 2][..]), "{name}");
        let totals = loss(&objective, &[], &Normaliser::of(&objective, &[])).totals();
        assert_eq!(totals, Totals::default());
        assert_eq!((totals.kl_mean(), totals.entropy_mean()), (None, None));
        assert_eq!(totals.divergence_mean(), None);
        assert_eq!((totals.ratio_mean(), totals.clip_fraction()), (0.0, 0.0));
    }
}

#[test]
fn a_nan_is_seen_in_loss_gradient_and_metrics() {
    let objective = Preset::Verl0_9.objective(256);
    let normaliser = Normaliser::of(&objective, &[2]);
    let run = |logps: &[f32], advantage| {
        let terms = SequenceTerms {
            logps,
            old_logps: Some(&[-1.0, -1.0]),
            advantage,
            ..SequenceTerms::default()
        };
        loss(&objective, &[terms], &normaliser)
    };
    for advantage in [1.0, -1.0] {
        for (logps, nan_idx) in [([-1.0, f32::NAN], 1), ([f32::NAN, -1.0], 0)] {
            let out = run(&logps, advantage);
            assert!(out.loss().is_nan() && out.totals().ratio_max.is_nan());
            assert!(out.dlogps[nan_idx].is_nan() && !out.dlogps[1 - nan_idx].is_nan());
        }
    }
}

#[test]
#[should_panic(expected = "`old_logps` has one value per log-prob")]
fn a_buffer_of_the_wrong_length_panics_with_its_name() {
    let objective = Preset::Dapo.objective(256);
    let terms = SequenceTerms { logps: &[-1.0], old_logps: Some(&[]), ..SequenceTerms::default() };
    loss(&objective, &[terms], &Normaliser::of(&objective, &[1]));
}

#[test]
#[should_panic(expected = "`ref_logps` are given where the loss has a KL term")]
fn a_missing_reference_panics_with_its_name() {
    let objective = Preset::DeepseekR1.objective(256);
    let terms = SequenceTerms { logps: &[-1.0], ..SequenceTerms::default() };
    loss(&objective, &[terms], &Normaliser::of(&objective, &[1]));
}
