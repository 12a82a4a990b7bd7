//! Named settings of the objective, each as its source has it.
//!
//! A name with a version is that version of a program with its default settings; changing a program's
//! version is a new preset, never a new meaning of an old one.

use crate::advantage::{AdvantageRule, Baseline, Scale, SingleRule, StdEstimator};
use crate::objective::{
    Aggregation, EntropyMean, ImportanceMode, KlEstimator, Objective, RatioLevel, Surrogate,
};
use crate::value::ValueRule;

/// A named setting of every constant of [`Objective`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preset {
    /// GRPO as DeepSeek-R1 has it: arXiv:2501.12948, eq. 1–3; arXiv:2402.03300, eq. 3–4, for `1/|o_i|`.
    ///
    /// Clip 0.2, KL 0.001 in the loss with k3, the mean over completions of the mean over their tokens. The
    /// papers write `std({r_1 … r_G})` without saying which: we divide by n, as the set is all there
    /// is, not a sample of something (TRL and verl divide by n - 1, which shrinks advantages by
    /// sqrt((G-1)/G), 3 % at G = 16). The papers divide by std alone; our 1e-8 only guards the division, and a
    /// group whose std is at most 1e-6 counts as without signal. R1's first RL stage was published with
    /// clip 10, which is `clip = 10`.
    #[default]
    DeepseekR1,
    /// TRL 1.16.0, `GRPOConfig` and `GRPOTrainer` at their defaults: `loss_type = "dapo"`, `beta = 0`,
    /// `epsilon = 0.2`, `scale_rewards = "group"`, `use_bias_correction_kl = True` (seen once `kl` is set).
    ///
    /// Two things of TRL are not in the loss: its correction of sampler against trainer log-probs,
    /// which is 1 where both are one program, and the tokens of unscorable completions, which it
    /// keeps with advantage 0 and we leave out.
    Trl1_16,
    /// verl 0.9.1, `core_algos.py` with `adv_estimator = grpo` and the actor's defaults: `clip_ratio = 0.2`,
    /// `clip_ratio_c = 3`, `loss_agg_mode = token-mean`, `use_kl_loss = False` (its k3 and clamps are
    /// seen once `kl` is set), log-ratio clamped to ±20, std with n - 1 and 1e-6, a lone completion's
    /// advantage its reward.
    Verl0_9,
    /// Dr. GRPO: arXiv:2503.20783, sections 3.1 and 3.2. No std, no `1/|o_i|`: sums over tokens
    /// are divided by the longest completion allowed; no KL.
    DrGrpo,
    /// DAPO: arXiv:2503.14476, eq. 8–9. Clip 0.2 below and 0.28 above, mean over tokens, no KL. Its dynamic
    /// sampling and overlong penalty are settings of the stage and of rewards. The paper's mean is over
    /// one prompt's tokens; as its own code does, ours is over the minibatch's.
    Dapo,
    /// GSPO: arXiv:2507.18071, eq. 5 and 7, with the clip of section 5.1. One ratio per completion, the geometric
    /// mean of its tokens', clipped in a band of a thousandth; no KL.
    Gspo,
    /// CISPO: arXiv:2506.13585, eq. 4 and 5. A token's ratio is cut off at 5 and weighs its REINFORCE term; mean over
    /// tokens, no lower clip, no KL. The paper doesn't say its bound: 5 is that of ScaleRL (arXiv:2510.13786).
    Cispo,
    /// RLOO: arXiv:2402.14740, sections 3.2 and 3.3. A completion is one action: the sum over its tokens, compared
    /// with the mean of the others of its group, without std; KL in the reward, with 0.05 as TRL's `RLOOConfig` has
    /// it. PPO's clip is seen only where a step has several optimizer steps.
    Rloo,
    /// REINFORCE++: arXiv:2501.03262, sections 3.1 and 3.2. No baseline but that of the whole batch: advantages are
    /// normalised over all of its tokens; clip 0.2, mean over tokens. The paper's KL penalty, which is in the
    /// reward of each token, is left out; `kl` and `kl_in_reward` take it off the completion's.
    ReinforcePlusPlus,
    /// REINFORCE++ with a baseline: arXiv:2501.03262, section 3.3. The group's mean is taken off before
    /// advantages are normalised over the batch; KL with k2 in the loss.
    ReinforcePlusPlusBaseline,
    /// PPO with a critic: arXiv:1707.06347, eq. 7, 9 (each loss with a model of its own), 11 and 12, for language as
    /// in InstructGPT (arXiv:2203.02155, eq. 2) and with the defaults that TRL's `PPOConfig` had: clip 0.2 of ratios
    /// and of values, gamma 1, lambda 0.95, advantages whitened over the batch's tokens (std with n - 1), mean over
    /// tokens, KL 0.05 with k1 off the reward of each token.
    ///
    /// verl's PPO is `lambda = 1, value_clip = 0.5, kl = 0, dual_clip = 3.0, log_ratio_clamp = 20.0`. The factor of
    /// the critic's loss (TRL: 0.1) has no place here: the critic is a model of its own, whose learning rate is
    /// `critic.optimizer.lr`.
    Ppo,
    /// On-policy distillation: Agarwal et al. 2023 (GKD), arXiv:2306.13649, with all texts the student's own and
    /// reverse KL; Lu et al. 2025, "On-Policy Distillation", Thinking Machines Lab. Mean over tokens of the
    /// divergence from the stage's `teacher`, with rewards beside it if there are any; no KL from a reference.
    Distill,
}

impl Preset {
    /// All presets, the default first.
    pub const ALL: [Self; 12] = [
        Self::DeepseekR1,
        Self::Trl1_16,
        Self::Verl0_9,
        Self::DrGrpo,
        Self::Dapo,
        Self::Gspo,
        Self::Cispo,
        Self::Rloo,
        Self::ReinforcePlusPlus,
        Self::ReinforcePlusPlusBaseline,
        Self::Ppo,
        Self::Distill,
    ];

    /// The name in pipeline files.
    pub fn name(self) -> &'static str {
        match self {
            Self::DeepseekR1 => "deepseek-r1",
            Self::Trl1_16 => "trl-1.16",
            Self::Verl0_9 => "verl-0.9",
            Self::DrGrpo => "dr-grpo",
            Self::Dapo => "dapo",
            Self::Gspo => "gspo",
            Self::Cispo => "cispo",
            Self::Rloo => "rloo",
            Self::ReinforcePlusPlus => "reinforce++",
            Self::ReinforcePlusPlusBaseline => "reinforce++-baseline",
            Self::Ppo => "ppo",
            Self::Distill => "distill",
        }
    }

    /// The preset of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|preset| preset.name() == name)
    }

    /// The constants. `completion_len_tokens_max`, the longest completion of the stage, is Dr. GRPO's divisor.
    pub fn objective(self, completion_len_tokens_max: u32) -> Objective {
        match self {
            Self::DeepseekR1 => DEEPSEEK_R1,
            Self::Trl1_16 => Objective {
                kl_coef: 0.0,
                kl_times_ratio: true,
                aggregation: Aggregation::RolloutTokenMean,
                advantage: AdvantageRule {
                    std: StdEstimator::Sample,
                    eps: 1e-4,
                    no_signal_std_max: 0.0,
                    ..DEEPSEEK_R1.advantage
                },
                ..DEEPSEEK_R1
            },
            Self::Verl0_9 => Objective {
                dual_clip: Some(3.0),
                log_ratio_clamp: Some(20.0),
                kl_coef: 0.0,
                kl_log_ratio_clamp: Some(20.0),
                kl_value_clamp: Some(10.0),
                entropy_mean: EntropyMean::AsLoss,
                aggregation: Aggregation::TokenMean,
                count_empty_sequences: false,
                advantage: AdvantageRule {
                    std: StdEstimator::Sample,
                    eps: 1e-6,
                    no_signal_std_max: 0.0,
                    single: SingleRule::Reward,
                    ..DEEPSEEK_R1.advantage
                },
                ..DEEPSEEK_R1
            },
            Self::DrGrpo => Objective {
                kl_coef: 0.0,
                aggregation: Aggregation::Constant { length_tokens: completion_len_tokens_max },
                advantage: AdvantageRule { scale: Scale::None, ..DEEPSEEK_R1.advantage },
                ..DEEPSEEK_R1
            },
            Self::Dapo => Objective { clip_high: 0.28, ..TOKEN_MEAN },
            Self::Gspo => Objective {
                clip_low: 3e-4,
                clip_high: 4e-4,
                ratio: RatioLevel::Sequence,
                kl_coef: 0.0,
                ..DEEPSEEK_R1
            },
            Self::Cispo => Objective {
                clip_low: 1.0,
                clip_high: 4.0,
                surrogate: Surrogate::Cispo,
                ..TOKEN_MEAN
            },
            Self::Rloo => RLOO,
            Self::ReinforcePlusPlus => REINFORCE_PLUS_PLUS,
            Self::ReinforcePlusPlusBaseline => Objective {
                kl_coef: DEEPSEEK_R1.kl_coef,
                kl_estimator: KlEstimator::K2,
                advantage: AdvantageRule { scale: Scale::Whiten, ..DEEPSEEK_R1.advantage },
                ..TOKEN_MEAN
            },
            Self::Ppo => PPO,
            Self::Distill => Objective { distill_coef: 1.0, ..TOKEN_MEAN },
        }
    }
}

const PPO: Objective = Objective {
    kl_coef: 0.05,
    kl_in_reward: true,
    kl_estimator: KlEstimator::K1,
    advantage: AdvantageRule {
        baseline: Baseline::Value,
        scale: Scale::Whiten,
        std: StdEstimator::Sample,
        no_signal_std_max: 0.0,
        ..DEEPSEEK_R1.advantage
    },
    ..TOKEN_MEAN
};

const RLOO: Objective = Objective {
    kl_coef: 0.05,
    kl_in_reward: true,
    kl_estimator: KlEstimator::K1,
    aggregation: Aggregation::Constant { length_tokens: 1 },
    advantage: AdvantageRule {
        baseline: Baseline::LeaveOneOut,
        scale: Scale::None,
        ..DEEPSEEK_R1.advantage
    },
    ..DEEPSEEK_R1
};

const REINFORCE_PLUS_PLUS: Objective = Objective {
    advantage: AdvantageRule {
        baseline: Baseline::None,
        scale: Scale::Whiten,
        ..DEEPSEEK_R1.advantage
    },
    ..TOKEN_MEAN
};

/// What those have in common that weigh all tokens alike and know no reference.
const TOKEN_MEAN: Objective =
    Objective { kl_coef: 0.0, aggregation: Aggregation::TokenMean, ..DEEPSEEK_R1 };

const DEEPSEEK_R1: Objective = Objective {
    clip_low: 0.2,
    clip_high: 0.2,
    dual_clip: None,
    delta: None,
    surrogate: Surrogate::Clip,
    ratio: RatioLevel::Token,
    log_ratio_clamp: None,
    importance_cap: 2.0,
    importance_floor: 0.0,
    importance_mode: ImportanceMode::Truncate,
    importance_level: RatioLevel::Token,
    kl_coef: 0.001,
    kl_in_reward: false,
    kl_estimator: KlEstimator::K3,
    kl_times_ratio: false,
    kl_log_ratio_clamp: None,
    kl_value_clamp: None,
    distill_coef: 0.0,
    entropy_coef: 0.0,
    entropy_mean: EntropyMean::Tokens,
    aggregation: Aggregation::SequenceMean,
    count_empty_sequences: true,
    advantage: AdvantageRule {
        baseline: Baseline::Group,
        scale: Scale::Group,
        std: StdEstimator::Population,
        eps: 1e-8,
        no_signal_std_max: 1e-6,
        single: SingleRule::Zero,
    },
    value: ValueRule { gamma: 1.0, lambda: 0.95, clip: Some(0.2) },
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advantage::{Sample, advantages};

    #[test]
    fn names_lead_back_to_their_presets() {
        for preset in Preset::ALL {
            assert_eq!(Preset::from_name(preset.name()), Some(preset));
        }
        assert_eq!(Preset::from_name("trl"), None);
        assert_eq!(Preset::default(), Preset::ALL[0]);
    }

    #[test]
    fn presets_give_their_programs_advantages() {
        // Rewards 0, 1, 1: mean 2/3, population variance 2/9, sample variance 1/3.
        let sample = |reward: f32| Sample { reward: Some(reward), len_tokens: 10 };
        let rewards = [0.0, 1.0, 1.0].map(sample);
        for (preset, divisor) in [
            (Preset::DeepseekR1, (2.0_f64 / 9.0).sqrt() + 1e-8),
            (Preset::Trl1_16, (1.0_f64 / 3.0).sqrt() + 1e-4),
            (Preset::Verl0_9, (1.0_f64 / 3.0).sqrt() + 1e-6),
            (Preset::DrGrpo, 1.0),
            (Preset::Dapo, (2.0_f64 / 9.0).sqrt() + 1e-8),
            (Preset::Gspo, (2.0_f64 / 9.0).sqrt() + 1e-8),
            (Preset::Cispo, (2.0_f64 / 9.0).sqrt() + 1e-8),
            // 1 - 1/2.
            (Preset::Rloo, 2.0 / 3.0),
            (Preset::ReinforcePlusPlus, (2.0_f64 / 9.0).sqrt() + 1e-8),
            (Preset::ReinforcePlusPlusBaseline, (2.0_f64 / 9.0).sqrt() + 1e-8),
            (Preset::Distill, (2.0_f64 / 9.0).sqrt() + 1e-8),
        ] {
            let rule = preset.objective(256).advantage;
            let group = &advantages(&[&rewards], &rule).unwrap()[0];
            let expected = ((1.0 - 2.0 / 3.0) / divisor) as f32;
            assert!((group.rows[1].value - expected).abs() < 1e-6, "{preset:?}");
            let lone = &advantages(&[&[sample(2.0)]], &rule).unwrap()[0];
            let expected = if preset == Preset::Verl0_9 { 2.0 / (1.0 + 1e-6) } else { 0.0 };
            assert!((lone.rows[0].value - expected).abs() < 1e-6, "{preset:?}");
        }
    }
}
