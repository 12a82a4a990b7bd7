//! GRPO and its relatives as one function with every constant explicit.
//!
//! "GRPO" names several different functions: papers and programs differ in the standard deviation, the
//! clip, the form and place of the KL term and what the sum over tokens is divided by. Here each of those is
//! a field of [`Objective`]; [`crate::preset`] has the named settings and [`formula`] prints what will run.
//!
//! # Map
//! - [`Objective`]: the settings, with [`Normaliser`] for the divisors of a minibatch.
//! - [`loss`]: loss, per-token gradients and [`Totals`] of a micro-batch.
//! - [`Slopes`]: those gradients token by token, while the forward pass goes on.
//! - [`formula`]: the same in words, for `aha check`.
//! - [`ObjectiveFile`]: the keys of a pipeline file, resolved into an [`Objective`].

mod file;
mod formula;
mod loss;
#[cfg(test)]
mod options;
#[cfg(test)]
mod reference;
mod slopes;

pub use file::{Kind, ObjectiveFile, Switch};
pub use formula::formula;
pub use loss::{Importance, LossOut, SequenceTerms, Totals, kl_estimate, loss};
pub use slopes::Slopes;

use serde::{Deserialize, Serialize};

use crate::advantage::{AdvantageRule, Baseline};
use crate::value::ValueRule;

/// Every constant of the loss. Per token `t` of completion `i`, with `A` its advantage, the completion's or, with a
/// critic, the token's own:
///
/// ```text
/// L  = -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)      rho = exp(logp - old), see `ratio`
/// KL = e^d - d - 1                                                d = ref - logp, see `kl_estimator`
/// loss = aggregate(w L + kl_coef KL + distill_coef D) - entropy_coef mean(entropy)
/// D  = sum_v p(v) (log p(v) - log q(v))           p: the policy, q: the teacher, over the whole vocabulary
/// w    = min(exp(old - behaviour), importance_cap)                a constant in the gradient, see `importance_mode`
/// ```
///
/// `w` is 1 where [`SequenceTerms::behaviour_logps`] are absent: where `old`, computed by the learner, is what the
/// sampler computed too. Where that drew from older weights, `old` is of those before the step, and the whole is
/// AReaL's decoupled objective (arXiv:2505.24298, eq. 5) with a weight that is cut off. It multiplies the policy term
/// only. In a file and in its serialised form the keys are those of [`ObjectiveFile`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "ObjectiveFile", try_from = "ObjectiveFile")]
pub struct Objective {
    /// The ratio is clipped below at `1 - clip_low`. At 1 or more there is no lower clip.
    pub clip_low: f64,
    /// The ratio is clipped above at `1 + clip_high`.
    pub clip_high: f64,
    /// Dual clip (Ye et al. 2019, arXiv:1912.09729, eq. 5; verl's `clip_ratio_c`): where `A < 0`, a token's
    /// loss is at most `-dual_clip A`.
    pub dual_clip: Option<f64>,
    /// TRL's `delta` (INTELLECT-2, arXiv:2505.07291): the unclipped branch's ratio is at most this.
    pub delta: Option<f64>,
    /// How the ratio weighs a token.
    pub surrogate: Surrogate,
    /// What a ratio is of.
    pub ratio: RatioLevel,
    /// The log-ratio is clamped to ± this before the exponential (verl: 20); outside, its gradient is 0.
    pub log_ratio_clamp: Option<f64>,
    /// Upper bound of the importance weight of a token that was sampled by other kernels than the learner's, or from
    /// older weights: truncated importance sampling (Ionides 2008; for the gap between sampler and trainer Yao et al.
    /// 2025). verl:
    /// `tis_imp_ratio_cap`, 2; TRL: `vllm_importance_sampling_cap`, 3 and by sequences.
    pub importance_cap: f64,
    /// Lower bound of that weight.
    pub importance_floor: f64,
    /// What a weight outside of its bounds becomes.
    pub importance_mode: ImportanceMode,
    /// What a weight is of.
    pub importance_level: RatioLevel,
    /// Factor of the KL term; 0 needs no reference model.
    pub kl_coef: f64,
    /// The estimates of a completion's tokens are added up and taken off its reward, before advantages, in place of a
    /// term of the loss (verl's `use_kl_in_reward`, TRL's RLOO). They are then of the policy that sampled. With a
    /// critic each is taken off its own token's reward.
    pub kl_in_reward: bool,
    /// Which estimator of the KL divergence from the reference.
    pub kl_estimator: KlEstimator,
    /// The KL term is multiplied by the ratio, and differentiated through it (TRL's
    /// `use_bias_correction_kl`; DeepSeek-V3.2, arXiv:2512.02556): unbiased when the policy has moved
    /// away from the one that sampled.
    pub kl_times_ratio: bool,
    /// K3 only: `ref - logp` is clamped to ± this (verl: 20).
    pub kl_log_ratio_clamp: Option<f64>,
    /// K3 only: the estimate is clamped to ± this (verl: 10).
    pub kl_value_clamp: Option<f64>,
    /// Factor of the reverse KL divergence from a teacher, at each token that the policy drew; 0 needs no teacher.
    ///
    /// On-policy distillation: Agarwal et al. 2023 (GKD, arXiv:2306.13649: reverse KL, all texts the student's own), Lu
    /// et al. 2025 ("On-Policy Distillation", Thinking Machines Lab). The latter estimate the divergence from the token
    /// that was drawn, as an advantage `-(logp - teacher)`; ours is the exact sum, whose gradient is the mean of theirs
    /// over all tokens that could have been drawn there, without its variance. Neither is differentiated through the
    /// drawing of the tokens before.
    pub distill_coef: f64,
    /// Factor of the entropy bonus.
    pub entropy_coef: f64,
    /// Which mean of the entropy.
    pub entropy_mean: EntropyMean,
    /// What the sum over tokens is divided by.
    pub aggregation: Aggregation,
    /// Whether a completion without a trained token counts in a mean over completions (TRL: yes, verl: no).
    pub count_empty_sequences: bool,
    /// How rewards become advantages.
    pub advantage: AdvantageRule,
    /// How a critic's values do, and how it learns; seen where the baseline is [`Baseline::Value`].
    pub value: ValueRule,
}

/// How the ratio weighs a token's policy term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Surrogate {
    /// `-min(rho A, clip(rho) A)`: PPO, GRPO. A token whose ratio is clipped has no gradient.
    Clip,
    /// `-sg(clip(rho)) A logp`, with `sg` a constant in the gradient: CISPO (MiniMax-M1, arXiv:2506.13585, eq. 4 and
    /// 5). Every token has a gradient, at most `1 + clip_high` times that of REINFORCE.
    Cispo,
}

/// What an importance weight outside of its bounds becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImportanceMode {
    /// The bound (TRL's `*_truncate`, verl's `tis`).
    Truncate,
    /// 0: the token's policy term is left out (TRL's `*_mask`; IcePop, arXiv:2510.18855).
    Mask,
}

/// What a ratio is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RatioLevel {
    /// Each token has its own: PPO, GRPO.
    Token,
    /// One per completion, the geometric mean of its tokens' (GSPO, arXiv:2507.18071, eq. 7).
    Sequence,
}

/// Estimators of KL(policy || reference) from one sample (Schulman 2020), with `d = ref - logp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlEstimator {
    /// `-d`. Unbiased as a value; as a loss its gradient is that of the log-prob alone and has mean 0.
    K1,
    /// `d^2 / 2`. Its gradient is an unbiased estimate of the KL's, on-policy.
    K2,
    /// `e^d - d - 1`: the papers' choice; never negative.
    K3,
}

/// Which mean of the entropy the bonus takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntropyMean {
    /// Over the tokens of the minibatch, whatever the aggregation (TRL).
    Tokens,
    /// The same aggregation as the policy term (verl).
    AsLoss,
}

/// What the sum over tokens is divided by. `n_i`: trained tokens of completion `i`; `B`: completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregation {
    /// `1/B sum_i 1/n_i sum_t`: the paper's mean over completions of the mean over tokens.
    /// TRL's `grpo`, verl's `seq-mean-token-mean`.
    SequenceMean,
    /// `1/(sum_i n_i) sum_i sum_t`, over the minibatch. DAPO, verl's `token-mean`; TRL's `bnpo` where
    /// the minibatch is one micro-batch (with several, TRL's result depends on the cut, ours never does).
    TokenMean,
    /// As `TokenMean`, but divided by the rollout batch's tokens per minibatch, so that every minibatch
    /// of a rollout batch has the same divisor. TRL's `dapo`.
    RolloutTokenMean,
    /// `1/(B * length_tokens) sum_i sum_t`. Dr. GRPO; with 1 verl's `seq-mean-token-sum`, TRL's `luspo`.
    Constant {
        /// The constant, for Dr. GRPO the longest completion allowed.
        length_tokens: u32,
    },
}

/// The divisors of a minibatch, counted once, so that micro-batches share them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normaliser {
    aggregation: Aggregation,
    entropy_mean: EntropyMean,
    sequence_count: usize,
    token_count: usize,
    rollout_tokens_per_minibatch: f64,
}

impl Objective {
    /// How a critic's values become advantages; none where there is no critic.
    pub fn critic(&self) -> Option<&ValueRule> {
        (self.advantage.baseline == Baseline::Value).then_some(&self.value)
    }

    /// Factor of the KL term of the loss: 0 where the KL is in the reward.
    pub fn kl_loss_coef(&self) -> f64 {
        if self.kl_in_reward { 0.0 } else { self.kl_coef }
    }

    /// Factor of the KL estimates that are taken off rewards: 0 where the KL is in the loss.
    pub fn kl_reward_coef(&self) -> f64 {
        if self.kl_in_reward { self.kl_coef } else { 0.0 }
    }
}

impl Normaliser {
    /// From the number of trained tokens of each completion of the whole minibatch.
    ///
    /// [`Aggregation::RolloutTokenMean`] also needs [`Self::with_rollout`] where the rollout batch is
    /// more than this minibatch.
    pub fn of(objective: &Objective, trained_lens_tokens: &[usize]) -> Self {
        let token_count: usize = trained_lens_tokens.iter().sum();
        let sequence_count = if objective.count_empty_sequences {
            trained_lens_tokens.len()
        } else {
            trained_lens_tokens.iter().filter(|&&len| 0 < len).count()
        };
        Self {
            aggregation: objective.aggregation,
            entropy_mean: objective.entropy_mean,
            sequence_count,
            token_count,
            rollout_tokens_per_minibatch: token_count as f64,
        }
    }

    /// The same with the trained tokens of the whole rollout batch and the minibatches it is split in.
    pub fn with_rollout(self, token_count: usize, minibatch_count: usize) -> Self {
        assert!(0 < minibatch_count, "a rollout batch is split in at least one minibatch");
        Self { rollout_tokens_per_minibatch: token_count as f64 / minibatch_count as f64, ..self }
    }

    /// The factor of each token's loss in a completion of `len_tokens` trained tokens.
    pub fn token_weight(&self, len_tokens: usize) -> f64 {
        let sequences = self.sequence_count.max(1) as f64;
        let divisor = match self.aggregation {
            Aggregation::SequenceMean => sequences * len_tokens.max(1) as f64,
            Aggregation::TokenMean => self.token_count.max(1) as f64,
            Aggregation::RolloutTokenMean => match self.rollout_tokens_per_minibatch {
                0.0 => 1.0,
                tokens => tokens,
            },
            Aggregation::Constant { length_tokens } => sequences * f64::from(length_tokens),
        };
        1.0 / divisor
    }

    /// The factor of each token's entropy, before `entropy_coef`.
    pub fn entropy_weight(&self, len_tokens: usize) -> f64 {
        match self.entropy_mean {
            EntropyMean::Tokens => 1.0 / self.token_count.max(1) as f64,
            EntropyMean::AsLoss => self.token_weight(len_tokens),
        }
    }
}
