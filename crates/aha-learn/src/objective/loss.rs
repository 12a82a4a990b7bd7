//! The loss of a micro-batch and the gradient of each token's log-prob.
//!
//! | buffer | one value per | unit |
//! | --- | --- | --- |
//! | `logps` `old_logps` `behaviour_logps` `ref_logps` | completion token | nats |
//! | `entropies` `divergences` | completion token | nats |
//! | `dlogps` `dentropies` `ddivergences` | completion token, sequence after sequence | loss per nat |
//!
//! Where a minimum has two equal branches the gradient is the mean of theirs, as PyTorch has it; a clip
//! passes the gradient on its bounds.

use std::ops::Range;

use super::{ImportanceMode, KlEstimator, Normaliser, Objective, RatioLevel, Surrogate};

/// One completion's part in the loss. All slices have one value per token of the completion.
#[derive(Clone, Copy, Debug, Default)]
pub struct SequenceTerms<'a> {
    /// Log-probs under the policy that learns.
    pub logps: &'a [f32],
    /// Log-probs under the policy that sampled, as the learner computes them; absent on-policy, where the ratio is 1
    /// and has a gradient.
    pub old_logps: Option<&'a [f32]>,
    /// Log-probs under the policy that sampled, as the sampler computed them; absent where it computes what the
    /// learner does.
    pub behaviour_logps: Option<&'a [f32]>,
    /// Log-probs under the reference; needed where the loss has a KL term.
    pub ref_logps: Option<&'a [f32]>,
    /// Entropies of the policy that learns; needed where `entropy_coef` is not 0.
    pub entropies: Option<&'a [f32]>,
    /// Divergences of the policy that learns from the teacher; needed where `distill_coef` is not 0.
    pub divergences: Option<&'a [f32]>,
    /// The completion's advantage.
    pub advantage: f32,
    /// Advantages of its tokens, in place of the completion's.
    pub token_advantages: Option<&'a [f32]>,
    /// Which tokens count; all where absent.
    pub mask: Option<&'a [bool]>,
}

impl SequenceTerms<'_> {
    /// Tokens that count in the loss.
    pub fn trained_len_tokens(&self) -> usize {
        self.mask.map_or(self.logps.len(), |mask| mask.iter().filter(|&&m| m).count())
    }

    pub(super) fn is_trained(&self, idx: usize) -> bool {
        self.mask.is_none_or(|mask| mask[idx])
    }

    fn advantage_at(&self, idx: usize) -> f64 {
        f64::from(self.token_advantages.map_or(self.advantage, |advantages| advantages[idx]))
    }

    fn assert_shapes(&self, objective: &Objective) {
        let len = self.logps.len();
        let check = |name, found: Option<usize>| {
            assert!(found.is_none_or(|found| found == len), "`{name}` has one value per log-prob");
        };
        check("old_logps", self.old_logps.map(<[_]>::len));
        check("ref_logps", self.ref_logps.map(<[_]>::len));
        check("entropies", self.entropies.map(<[_]>::len));
        check("token_advantages", self.token_advantages.map(<[_]>::len));
        check("divergences", self.divergences.map(<[_]>::len));
        check("mask", self.mask.map(<[_]>::len));
        check("behaviour_logps", self.behaviour_logps.map(<[_]>::len));
        assert!(
            objective.kl_loss_coef() == 0.0 || self.ref_logps.is_some(),
            "`ref_logps` are given where the loss has a KL term"
        );
        assert!(
            objective.entropy_coef == 0.0 || self.entropies.is_some(),
            "`entropies` are given where `entropy_coef` is not 0"
        );
        assert!(
            objective.distill_coef == 0.0 || self.divergences.is_some(),
            "`divergences` are given where `distill_coef` is not 0"
        );
    }
}

/// Loss and gradients of a micro-batch.
#[derive(Clone, Debug, PartialEq)]
pub struct LossOut {
    /// The totals of each completion; [`Totals::add`] them in order.
    pub sequences: Vec<Totals>,
    /// The gradient of each log-prob, completion after completion; 0 where masked.
    pub dlogps: Vec<f32>,
    /// The gradient of each entropy, laid out as `dlogps`; absent where `entropy_coef` is 0.
    pub dentropies: Option<Vec<f32>>,
    /// The gradient of each divergence, laid out as `dlogps`; absent where `distill_coef` is 0.
    pub ddivergences: Option<Vec<f32>>,
}

impl LossOut {
    /// The micro-batch's share of the loss.
    pub fn loss(&self) -> f64 {
        self.totals().loss
    }

    /// The sum over this micro-batch.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        self.sequences.iter().for_each(|sequence| totals.add(sequence));
        totals
    }
}

/// Sums over tokens, from which the metrics of a minibatch come.
///
/// Added up completion by completion in the minibatch's order, they have the same bits whatever the
/// micro-batches were.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// The loss, normalised by the whole minibatch.
    pub loss: f64,
    /// Trained tokens.
    pub token_count: usize,
    /// Tokens with `A < 0` whose ratio is below the lower bound; with CISPO whatever `A` is.
    pub clip_low_count: usize,
    /// Tokens with `A > 0` whose ratio is above the upper bound; with CISPO whatever `A` is.
    pub clip_high_count: usize,
    /// Tokens whose loss is cut off by the dual clip.
    pub dual_clip_count: usize,
    /// Sum of the ratios.
    pub ratio_sum: f64,
    /// The largest ratio; 0 before the first token.
    pub ratio_max: f64,
    /// Sum of the KL estimates, without coefficient and ratio, over tokens that have a reference.
    pub kl_sum: f64,
    /// Tokens that have a reference.
    pub kl_count: usize,
    /// Sum of the entropies, over tokens that have one.
    pub entropy_sum: f64,
    /// Tokens that have an entropy.
    pub entropy_count: usize,
    /// Sum of the divergences from the teacher, over tokens that have one.
    pub divergence_sum: f64,
    /// Tokens that have a divergence.
    pub divergence_count: usize,
    /// Tokens that have an importance weight.
    pub importance_count: usize,
    /// Sum of the importance weights.
    pub importance_sum: f64,
    /// The largest importance weight; 0 before the first.
    pub importance_max: f64,
    /// Tokens whose importance weight is outside of its bounds.
    pub importance_cut_count: usize,
    /// Sum of the distances between the learner's and the sampler's log-probs, in nats.
    pub sampler_gap_sum: f64,
}

impl Totals {
    /// Adds the completions of the next micro-batch, in order.
    pub fn add_all(&mut self, out: &LossOut) {
        out.sequences.iter().for_each(|sequence| self.add(sequence));
    }

    /// Adds the next completion.
    pub fn add(&mut self, next: &Self) {
        self.loss += next.loss;
        self.token_count += next.token_count;
        self.clip_low_count += next.clip_low_count;
        self.clip_high_count += next.clip_high_count;
        self.dual_clip_count += next.dual_clip_count;
        self.ratio_sum += next.ratio_sum;
        self.ratio_max = max_or_nan(self.ratio_max, next.ratio_max);
        self.kl_sum += next.kl_sum;
        self.kl_count += next.kl_count;
        self.entropy_sum += next.entropy_sum;
        self.entropy_count += next.entropy_count;
        self.divergence_sum += next.divergence_sum;
        self.divergence_count += next.divergence_count;
        self.importance_count += next.importance_count;
        self.importance_sum += next.importance_sum;
        self.importance_max = max_or_nan(self.importance_max, next.importance_max);
        self.importance_cut_count += next.importance_cut_count;
        self.sampler_gap_sum += next.sampler_gap_sum;
    }

    /// Share of tokens clipped below.
    pub fn clip_low_fraction(&self) -> f64 {
        mean(self.clip_low_count as f64, self.token_count)
    }

    /// Share of tokens clipped above.
    pub fn clip_high_fraction(&self) -> f64 {
        mean(self.clip_high_count as f64, self.token_count)
    }

    /// Share of tokens clipped on either side.
    pub fn clip_fraction(&self) -> f64 {
        mean((self.clip_low_count + self.clip_high_count) as f64, self.token_count)
    }

    /// Share of tokens cut off by the dual clip.
    pub fn dual_clip_fraction(&self) -> f64 {
        mean(self.dual_clip_count as f64, self.token_count)
    }

    /// Mean ratio over tokens.
    pub fn ratio_mean(&self) -> f64 {
        mean(self.ratio_sum, self.token_count)
    }

    /// Mean KL estimate over tokens; absent without a reference.
    pub fn kl_mean(&self) -> Option<f64> {
        (0 < self.kl_count).then(|| mean(self.kl_sum, self.kl_count))
    }

    /// Mean entropy over tokens; absent where none was given.
    pub fn entropy_mean(&self) -> Option<f64> {
        (0 < self.entropy_count).then(|| mean(self.entropy_sum, self.entropy_count))
    }

    /// Mean divergence from the teacher over tokens; absent without one.
    pub fn divergence_mean(&self) -> Option<f64> {
        (0 < self.divergence_count).then(|| mean(self.divergence_sum, self.divergence_count))
    }

    /// What the importance weights were; absent where there were none.
    pub fn importance(&self) -> Option<Importance> {
        let mean = |sum: f64| mean(sum, self.importance_count);
        (0 < self.importance_count).then(|| Importance {
            mean: mean(self.importance_sum),
            max: self.importance_max,
            cut_share: mean(self.importance_cut_count as f64),
            sampler_gap_mean: mean(self.sampler_gap_sum),
        })
    }
}

/// Importance weights of a minibatch's tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Importance {
    /// Mean weight, after those outside of their bounds were cut off.
    pub mean: f64,
    /// Largest weight.
    pub max: f64,
    /// Share of tokens whose weight is outside of its bounds.
    pub cut_share: f64,
    /// Mean distance between the learner's and the sampler's log-prob of a token, in nats.
    pub sampler_gap_mean: f64,
}

/// The larger one; NaN where one is, which `f64::max` would drop and the watchdogs must see.
fn max_or_nan(a: f64, b: f64) -> f64 {
    if a.is_nan() || b < a { a } else { b }
}

fn mean(sum: f64, count: usize) -> f64 {
    if count == 0 { 0.0 } else { sum / count as f64 }
}

/// The loss of a micro-batch, normalised by the whole minibatch's `normaliser`.
pub fn loss(
    objective: &Objective,
    sequences: &[SequenceTerms<'_>],
    normaliser: &Normaliser,
) -> LossOut {
    let token_count = sequences.iter().map(|terms| terms.logps.len()).sum();
    let mut out = LossOut {
        sequences: Vec::with_capacity(sequences.len()),
        dlogps: Vec::with_capacity(token_count),
        dentropies: (objective.entropy_coef != 0.0).then(|| Vec::with_capacity(token_count)),
        ddivergences: (objective.distill_coef != 0.0).then(|| Vec::with_capacity(token_count)),
    };
    let mut gradients = Vec::new();
    for terms in sequences {
        terms.assert_shapes(objective);
        let mut totals = sequence_loss(objective, terms, normaliser, &mut gradients);
        out.dlogps.extend(gradients.iter().map(|&gradient| gradient as f32));
        add_entropy(objective, terms, normaliser, &mut totals, out.dentropies.as_mut());
        add_divergence(objective, terms, normaliser, &mut totals, out.ddivergences.as_mut());
        out.sequences.push(totals);
    }
    out
}

/// Policy and KL terms of one completion; overwrites `gradients` with those of its log-probs.
fn sequence_loss(
    objective: &Objective,
    terms: &SequenceTerms<'_>,
    normaliser: &Normaliser,
    gradients: &mut Vec<f64>,
) -> Totals {
    let len_tokens = terms.trained_len_tokens();
    let weight = normaliser.token_weight(len_tokens);
    let sequence_ratio = match objective.ratio {
        RatioLevel::Token => None,
        RatioLevel::Sequence => Some(Ratio::of(objective, mean_log_ratio(terms, len_tokens))),
    };
    let importances = Importances::of(objective, terms);
    let mut totals = Totals { token_count: len_tokens, ..Totals::default() };
    // With one ratio per completion, each token's gradient flows through all of its log-probs.
    let mut shared_gradient = 0.0;
    gradients.clear();
    for idx in 0..terms.logps.len() {
        if !terms.is_trained(idx) {
            gradients.push(0.0);
            continue;
        }
        let token = policy_loss(&importances, idx, sequence_ratio, &mut totals);
        totals.loss += weight * token.value;
        match objective.ratio {
            RatioLevel::Token => gradients.push(weight * token.slope()),
            RatioLevel::Sequence => {
                shared_gradient += weight * token.dlog_ratio;
                gradients.push(weight * token.dlogp);
            }
        }
    }
    if objective.ratio == RatioLevel::Sequence {
        let share = shared_gradient / len_tokens.max(1) as f64;
        for (idx, gradient) in gradients.iter_mut().enumerate() {
            if terms.is_trained(idx) {
                *gradient += share;
            }
        }
    }
    totals
}

/// The entropy bonus of one completion.
fn add_entropy(
    objective: &Objective,
    terms: &SequenceTerms<'_>,
    normaliser: &Normaliser,
    totals: &mut Totals,
    dentropies: Option<&mut Vec<f32>>,
) {
    if let Some(entropies) = terms.entropies {
        for (idx, &entropy) in entropies.iter().enumerate() {
            if terms.is_trained(idx) {
                totals.entropy_sum += f64::from(entropy);
                totals.entropy_count += 1;
            }
        }
    }
    if let Some(dentropies) = dentropies {
        let weight = normaliser.entropy_weight(totals.token_count);
        totals.loss -= objective.entropy_coef * weight * totals.entropy_sum;
        let gradient = (-objective.entropy_coef * weight) as f32;
        let tokens = 0..terms.logps.len();
        dentropies.extend(tokens.map(|idx| if terms.is_trained(idx) { gradient } else { 0.0 }));
    }
}

/// The divergence of one completion from the teacher.
fn add_divergence(
    objective: &Objective,
    terms: &SequenceTerms<'_>,
    normaliser: &Normaliser,
    totals: &mut Totals,
    ddivergences: Option<&mut Vec<f32>>,
) {
    let (Some(divergences), Some(ddivergences)) = (terms.divergences, ddivergences) else { return };
    let weight = objective.distill_coef * normaliser.token_weight(totals.token_count);
    for (idx, &divergence) in divergences.iter().enumerate() {
        let is_trained = terms.is_trained(idx);
        ddivergences.push(if is_trained { weight as f32 } else { 0.0 });
        if is_trained {
            totals.divergence_sum += f64::from(divergence);
            totals.divergence_count += 1;
        }
    }
    totals.loss += weight * totals.divergence_sum;
}

/// The gradient of a token's log-prob, from that and what else is known of its completion: what [`loss`] gives, where
/// no term needs more of the completion's log-probs than this one. `terms.logps` aren't looked at.
pub(super) fn token_slope(
    objective: &Objective,
    terms: &SequenceTerms<'_>,
    idx: usize,
    logp: f32,
    weight: f64,
) -> f32 {
    let one = terms.of_token(idx, std::slice::from_ref(&logp));
    let token = policy_loss(&Importances::of(objective, &one), 0, None, &mut Totals::default());
    (weight * token.slope()) as f32
}

impl<'a> SequenceTerms<'a> {
    /// Those of a token, with this log-prob.
    fn of_token<'b>(&self, idx: usize, logps: &'b [f32]) -> SequenceTerms<'b>
    where
        'a: 'b,
    {
        let part = |all: Option<&'a [f32]>| all.map(|all| &all[idx..idx + 1]);
        SequenceTerms {
            logps,
            old_logps: part(self.old_logps),
            behaviour_logps: part(self.behaviour_logps),
            ref_logps: part(self.ref_logps),
            entropies: None,
            divergences: None,
            advantage: self.advantage,
            token_advantages: part(self.token_advantages),
            mask: self.mask.map(|mask| &mask[idx..idx + 1]),
        }
    }
}

impl SequenceTerms<'_> {
    fn log_ratio(&self, idx: usize) -> f64 {
        self.old_logps.map_or(0.0, |old| f64::from(self.logps[idx]) - f64::from(old[idx]))
    }

    /// How far the learner's log-prob of a token is from the sampler's, in nats.
    fn sampler_gap(&self, idx: usize) -> Option<f64> {
        let old = self.old_logps.unwrap_or(self.logps);
        self.behaviour_logps.map(|behaviour| f64::from(old[idx]) - f64::from(behaviour[idx]))
    }
}

/// Factors of the policy terms of a completion's tokens, constants in the gradient.
struct Importances<'a> {
    objective: &'a Objective,
    terms: &'a SequenceTerms<'a>,
    /// The logarithm of the one factor of a completion.
    of_sequence: Option<f64>,
}

impl<'a> Importances<'a> {
    fn of(objective: &'a Objective, terms: &'a SequenceTerms<'a>) -> Self {
        let trained = (0..terms.logps.len()).filter(|&idx| terms.is_trained(idx));
        let of_sequence = match objective.importance_level {
            RatioLevel::Token => None,
            RatioLevel::Sequence => Some(trained.filter_map(|idx| terms.sampler_gap(idx)).sum()),
        };
        Self { objective, terms, of_sequence }
    }

    /// The factor of a token. NaN stays NaN.
    fn at(&self, idx: usize, totals: &mut Totals) -> f64 {
        let Some(gap) = self.terms.sampler_gap(idx) else { return 1.0 };
        let (floor, cap) = (self.objective.importance_floor, self.objective.importance_cap);
        let found = self.of_sequence.unwrap_or(gap).exp();
        let is_cut = found < floor || cap < found;
        let weight = match self.objective.importance_mode {
            ImportanceMode::Mask if is_cut => 0.0,
            ImportanceMode::Truncate if is_cut => found.clamp(floor, cap),
            ImportanceMode::Mask | ImportanceMode::Truncate => found,
        };
        totals.importance_count += 1;
        totals.importance_sum += weight;
        totals.importance_max = max_or_nan(totals.importance_max, weight);
        totals.importance_cut_count += usize::from(is_cut);
        totals.sampler_gap_sum += gap.abs();
        weight
    }
}

fn mean_log_ratio(terms: &SequenceTerms<'_>, len_tokens: usize) -> f64 {
    let tokens: Range<usize> = 0..terms.logps.len();
    let sum: f64 =
        tokens.filter(|&idx| terms.is_trained(idx)).map(|idx| terms.log_ratio(idx)).sum();
    sum / len_tokens.max(1) as f64
}

/// A ratio and its derivative with respect to the log-ratio: itself, or 0 where clamped.
#[derive(Clone, Copy)]
struct Ratio {
    value: f64,
    dlog_ratio: f64,
}

impl Ratio {
    fn of(objective: &Objective, log_ratio: f64) -> Self {
        let clamp = Clamped::of(log_ratio, objective.log_ratio_clamp);
        let value = clamp.value.exp();
        Self { value, dlog_ratio: value * clamp.slope }
    }
}

/// A token's loss, its derivative through the ratio and its direct derivative by the log-prob.
struct TokenLoss {
    value: f64,
    dlog_ratio: f64,
    dlogp: f64,
}

impl TokenLoss {
    /// The derivative by the log-prob, where the ratio is the token's own.
    fn slope(&self) -> f64 {
        self.dlogp + self.dlog_ratio
    }
}

/// Policy and KL terms of a token; its ratio is the completion's where that has one.
fn policy_loss(
    importances: &Importances<'_>,
    idx: usize,
    sequence_ratio: Option<Ratio>,
    totals: &mut Totals,
) -> TokenLoss {
    let Importances { objective, terms, .. } = *importances;
    let ratio = sequence_ratio.unwrap_or_else(|| Ratio::of(objective, terms.log_ratio(idx)));
    let importance = importances.at(idx, totals);
    token_loss(objective, terms, idx, ratio, importance, totals)
}

fn token_loss(
    objective: &Objective,
    terms: &SequenceTerms<'_>,
    idx: usize,
    ratio: Ratio,
    importance: f64,
    totals: &mut Totals,
) -> TokenLoss {
    totals.ratio_sum += ratio.value;
    totals.ratio_max = max_or_nan(totals.ratio_max, ratio.value);
    let advantage = terms.advantage_at(idx);
    let mut token = match objective.surrogate {
        Surrogate::Clip => {
            let policy = clip_surrogate(objective, ratio.value, advantage, totals);
            TokenLoss {
                value: importance * policy.value,
                dlog_ratio: importance * policy.slope * ratio.dlog_ratio,
                dlogp: 0.0,
            }
        }
        Surrogate::Cispo => {
            let factor = importance * cispo_weight(objective, ratio.value, totals);
            let dlogp = -factor * advantage;
            TokenLoss { value: dlogp * f64::from(terms.logps[idx]), dlog_ratio: 0.0, dlogp }
        }
    };
    if let Some(ref_logps) = terms.ref_logps {
        let kl = kl(objective, f64::from(terms.logps[idx]), f64::from(ref_logps[idx]));
        totals.kl_sum += kl.value;
        totals.kl_count += 1;
        let coef = objective.kl_loss_coef();
        // Without this test an infinite estimate would make 0 * inf out of a term that is switched off.
        if coef != 0.0 && objective.kl_times_ratio {
            token.value += coef * kl.value * ratio.value;
            token.dlogp += coef * kl.slope * ratio.value;
            token.dlog_ratio += coef * kl.value * ratio.dlog_ratio;
        } else if coef != 0.0 {
            token.value += coef * kl.value;
            token.dlogp += coef * kl.slope;
        }
    }
    token
}

/// A value and its derivative by the one thing it depends on.
#[derive(Clone, Copy)]
struct Clamped {
    value: f64,
    slope: f64,
}

impl Clamped {
    /// `x` clamped to ± `bound`.
    fn of(x: f64, bound: Option<f64>) -> Self {
        bound.map_or(Self { value: x, slope: 1.0 }, |bound| Self::between(x, -bound, bound))
    }

    fn between(x: f64, low: f64, high: f64) -> Self {
        if x < low {
            Self { value: low, slope: 0.0 }
        } else if high < x {
            Self { value: high, slope: 0.0 }
        } else {
            Self { value: x, slope: 1.0 }
        }
    }
}

/// What CISPO multiplies a token's REINFORCE term with.
fn cispo_weight(objective: &Objective, ratio: f64, totals: &mut Totals) -> f64 {
    let (low, high) = (1.0 - objective.clip_low, 1.0 + objective.clip_high);
    totals.clip_low_count += usize::from(ratio < low);
    totals.clip_high_count += usize::from(high < ratio);
    Clamped::between(ratio, low, high).value
}

/// The policy term of PPO and its derivative by the ratio.
fn clip_surrogate(
    objective: &Objective,
    ratio: f64,
    advantage: f64,
    totals: &mut Totals,
) -> Clamped {
    let (low, high) = (1.0 - objective.clip_low, 1.0 + objective.clip_high);
    let free = Clamped::between(ratio, f64::NEG_INFINITY, objective.delta.unwrap_or(f64::INFINITY));
    let clipped = Clamped::between(ratio, low, high);
    totals.clip_low_count += usize::from(advantage < 0.0 && free.value < low);
    totals.clip_high_count += usize::from(0.0 < advantage && high < free.value);

    let (a, b) = (free.value * advantage, clipped.value * advantage);
    let mut loss = if a < b {
        Clamped { value: -a, slope: -free.slope * advantage }
    } else if b < a {
        Clamped { value: -b, slope: -clipped.slope * advantage }
    } else {
        // Equal, or NaN, which must come out as NaN.
        Clamped { value: -(a + b) / 2.0, slope: -(free.slope + clipped.slope) / 2.0 * advantage }
    };
    if let Some(dual_clip) = objective.dual_clip
        && advantage < 0.0
        && -advantage * dual_clip < loss.value
    {
        totals.dual_clip_count += 1;
        loss = Clamped { value: -advantage * dual_clip, slope: 0.0 };
    }
    loss
}

/// The estimate of a token's KL divergence from the reference, in nats.
pub fn kl_estimate(objective: &Objective, logp: f32, ref_logp: f32) -> f64 {
    kl(objective, f64::from(logp), f64::from(ref_logp)).value
}

/// The KL estimate and its derivative by the log-prob.
fn kl(objective: &Objective, logp: f64, ref_logp: f64) -> Clamped {
    let d = ref_logp - logp;
    match objective.kl_estimator {
        KlEstimator::K1 => Clamped { value: -d, slope: 1.0 },
        KlEstimator::K2 => Clamped { value: d * d / 2.0, slope: -d },
        KlEstimator::K3 => {
            let d = Clamped::of(d, objective.kl_log_ratio_clamp);
            let inner = d.value.exp() - d.value - 1.0;
            let outer = Clamped::of(inner, objective.kl_value_clamp);
            let slope = outer.slope * (d.value.exp() - 1.0) * -d.slope;
            Clamped { value: outer.value, slope }
        }
    }
}
