//! The keys of a pipeline's `objective` table, and their resolution into an [`Objective`].

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{
    Aggregation, EntropyMean, ImportanceMode, KlEstimator, Objective, RatioLevel, Surrogate,
};
use crate::Problem;
use crate::advantage::{AdvantageRule, Baseline, Scale, SingleRule, StdEstimator};
use crate::preset::Preset;
use crate::value::ValueRule;

/// An `objective` table as the file has it. What is absent comes from the preset.
///
/// An [`Objective`] serialises as this table with every key written out, and is read back from it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "snake_case")]
pub struct ObjectiveFile {
    /// The family of the loss. Default `grpo`, the only one: PPO with a critic is the same loss with another baseline,
    /// `preset = "ppo"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// Where absent keys come from: `deepseek-r1` (default), `trl-1.16`, `verl-0.9`, `dr-grpo`, `dapo`, `gspo`,
    /// `cispo`, `rloo`, `reinforce++`, `reinforce++-baseline`,
    /// `ppo`, `distill`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// Sets `clip_low` and `clip_high` at once. At least 0; 0.2 in all papers but R1's own, which has 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
    /// The ratio is clipped below at 1 - this. At least 0; from 1 on there is no lower clip.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_low: Option<f64>,
    /// The ratio is clipped above at 1 + this. At least 0; DAPO's "clip-higher" is 0.28.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_high: Option<f64>,
    /// Where the advantage is negative a token's loss is at most this times its size (verl's
    /// `clip_ratio_c`). Above 1, or `false`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dual_clip: Option<Switch>,
    /// Upper bound of the ratio in the unclipped branch (TRL's `delta`). Above 0, or `false`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<Switch>,
    /// How the ratio weighs a token. `dual_clip` and `delta` belong to `clip` and must be `false` with `cispo`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub surrogate: Option<Surrogate>,
    /// What a ratio is of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<RatioLevel>,
    /// Clamp of the log-ratio before the exponential. Above 0, or `false`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_ratio_clamp: Option<Switch>,
    /// Upper bound of the weight that a token's policy term has where the sampler computes otherwise than the learner,
    /// as with `sampling.weights = "int8"`, or from older weights, with `max_staleness` above 0:
    /// `min(exp(old - behaviour), importance_cap)` (verl's `tis_imp_ratio_cap`, TRL's `vllm_importance_sampling_cap`).
    /// `old` is then of the weights before the step, the proximal policy, and `rho` is measured from it: AReaL's
    /// decoupled objective (arXiv:2505.24298, eq. 5, after Hilton et al. 2021, arXiv:2110.00641). At least 1; 2 in
    /// every preset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub importance_cap: Option<f64>,
    /// Lower bound of that weight (TRL's `C_min`). From 0 to 1; 0 in every preset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub importance_floor: Option<f64>,
    /// What a weight outside of its bounds becomes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub importance_mode: Option<ImportanceMode>,
    /// Whether each token has its own weight, or a completion has one: the product of those of its tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub importance_level: Option<RatioLevel>,
    /// Factor of the KL term. At least 0; 0 needs no reference model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// Whether the estimates of a completion's tokens are added up and taken off its reward, before advantages, in
    /// place of a term of the loss (verl's `use_kl_in_reward`, TRL's RLOO). With a critic each is taken off its own
    /// token's reward (InstructGPT, TRL's and verl's PPO).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_in_reward: Option<bool>,
    /// Which estimator of the KL divergence from the reference, with `d = ref - logp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_estimator: Option<KlEstimator>,
    /// Whether the KL term is multiplied by the ratio, and differentiated through it (TRL's
    /// `use_bias_correction_kl`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_times_ratio: Option<bool>,
    /// Clamp of the log-ratio inside `k3`. Above 0, or `false`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_log_ratio_clamp: Option<Switch>,
    /// Clamp of the value of `k3`. Above 0, or `false`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_value_clamp: Option<Switch>,
    /// Factor of the reverse KL divergence from the stage's `teacher`, over the whole vocabulary at each token that the
    /// policy drew: on-policy distillation. At least 0; anything else needs a teacher.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distill: Option<f64>,
    /// Factor of the entropy bonus. At least 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy: Option<f64>,
    /// Which mean of the entropy the bonus takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy_mean: Option<EntropyMean>,
    /// What the sum over tokens is divided by. `n_i`: trained tokens of completion `i`; `B`:
    /// completions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aggregation: Option<AggregationName>,
    /// The constant of `aggregation = "constant"`. At least 1; default the stage's longest completion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aggregation_length_tokens: Option<u32>,
    /// Whether completions without a trained token count in means over completions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count_empty_sequences: Option<bool>,
    /// What a reward is compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advantage_baseline: Option<Baseline>,
    /// What a deviation from the baseline is divided by. `group` needs a baseline of the group. With a critic `whiten`
    /// or `none`, of the advantages of all tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advantage_scale: Option<Scale>,
    /// Which standard deviation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advantage_std: Option<StdEstimator>,
    /// Added to the standard deviation. At least 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advantage_eps: Option<f64>,
    /// Groups with a standard deviation up to this have no signal. At least 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advantage_no_signal_std_max: Option<f64>,
    /// What a group with one scored completion gives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advantage_single: Option<SingleRule>,
    /// With `advantage_baseline = "value"`: discount of a token. From 0 to 1; 1 in every preset, as in TRL and verl.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gamma: Option<f64>,
    /// With `advantage_baseline = "value"`: weight of what lies further ahead in an advantage. From 0 to 1; 0.95 (TRL),
    /// and 1 in verl: with long completions a smaller one forgets the reward before it has come to the first tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lambda: Option<f64>,
    /// With `advantage_baseline = "value"`: how far a value may move from what it was before the step, until the critic
    /// is no longer pulled towards the return (TRL: 0.2; verl: 0.5). Above 0, or `false`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_clip: Option<Switch>,
}

/// The family of a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Group-relative policy optimisation and what it becomes with other constants.
    Grpo,
}

/// A bound that may be switched off: a number, or `false`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Switch {
    /// `false`: off. `true` says nothing and is a problem.
    Flag(bool),
    /// On, with this value.
    At(f64),
}

impl Switch {
    fn bound(self) -> Option<f64> {
        match self {
            Self::Flag(_) => None,
            Self::At(bound) => Some(bound),
        }
    }
}

impl From<Option<f64>> for Switch {
    fn from(bound: Option<f64>) -> Self {
        bound.map_or(Self::Flag(false), Self::At)
    }
}

/// The name of an [`Aggregation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AggregationName {
    /// [`Aggregation::SequenceMean`].
    SequenceMean,
    /// [`Aggregation::TokenMean`].
    TokenMean,
    /// [`Aggregation::RolloutTokenMean`].
    RolloutTokenMean,
    /// [`Aggregation::Constant`].
    Constant,
}

impl ObjectiveFile {
    /// The objective this table stands for, or every problem in it.
    ///
    /// `completion_len_tokens_max` is the longest completion of the stage, for the constant aggregation.
    pub fn resolve(
        &self,
        completion_len_tokens_max: Option<u32>,
    ) -> Result<Objective, Vec<Problem>> {
        let mut problems = Problems::default();
        let preset = problems.preset(self.preset.as_deref());
        let base = preset.objective(completion_len_tokens_max.unwrap_or(0));
        let clip = self.clip;
        let advantage = AdvantageRule {
            baseline: self.advantage_baseline.unwrap_or(base.advantage.baseline),
            scale: self.advantage_scale.unwrap_or(base.advantage.scale),
            std: self.advantage_std.unwrap_or(base.advantage.std),
            eps: self.advantage_eps.unwrap_or(base.advantage.eps),
            no_signal_std_max: self
                .advantage_no_signal_std_max
                .unwrap_or(base.advantage.no_signal_std_max),
            single: self.advantage_single.unwrap_or(base.advantage.single),
        };
        let objective = Objective {
            clip_low: self.clip_low.or(clip).unwrap_or(base.clip_low),
            clip_high: self.clip_high.or(clip).unwrap_or(base.clip_high),
            dual_clip: self.dual_clip.map_or(base.dual_clip, Switch::bound),
            delta: self.delta.map_or(base.delta, Switch::bound),
            surrogate: self.surrogate.unwrap_or(base.surrogate),
            ratio: self.ratio.unwrap_or(base.ratio),
            log_ratio_clamp: self.log_ratio_clamp.map_or(base.log_ratio_clamp, Switch::bound),
            importance_cap: self.importance_cap.unwrap_or(base.importance_cap),
            importance_floor: self.importance_floor.unwrap_or(base.importance_floor),
            importance_mode: self.importance_mode.unwrap_or(base.importance_mode),
            importance_level: self.importance_level.unwrap_or(base.importance_level),
            kl_coef: self.kl.unwrap_or(base.kl_coef),
            kl_in_reward: self.kl_in_reward.unwrap_or(base.kl_in_reward),
            kl_estimator: self.kl_estimator.unwrap_or(base.kl_estimator),
            kl_times_ratio: self.kl_times_ratio.unwrap_or(base.kl_times_ratio),
            kl_log_ratio_clamp: self
                .kl_log_ratio_clamp
                .map_or(base.kl_log_ratio_clamp, Switch::bound),
            kl_value_clamp: self.kl_value_clamp.map_or(base.kl_value_clamp, Switch::bound),
            distill_coef: self.distill.unwrap_or(base.distill_coef),
            entropy_coef: self.entropy.unwrap_or(base.entropy_coef),
            entropy_mean: self.entropy_mean.unwrap_or(base.entropy_mean),
            aggregation: self.aggregation(&base, completion_len_tokens_max),
            count_empty_sequences: self.count_empty_sequences.unwrap_or(base.count_empty_sequences),
            advantage,
            value: ValueRule {
                gamma: self.gamma.unwrap_or(base.value.gamma),
                lambda: self.lambda.unwrap_or(base.value.lambda),
                clip: self.value_clip.map_or(base.value.clip, Switch::bound),
            },
        };
        self.check_keys(&mut problems);
        self.check_critic_keys(&objective, &mut problems);
        check_ranges(&objective, &mut problems);
        check_together(&objective, &mut problems);
        if problems.found.is_empty() { Ok(objective) } else { Err(problems.found) }
    }

    fn aggregation(&self, base: &Objective, completion_len_tokens_max: Option<u32>) -> Aggregation {
        match self.aggregation {
            Some(AggregationName::SequenceMean) => Aggregation::SequenceMean,
            Some(AggregationName::TokenMean) => Aggregation::TokenMean,
            Some(AggregationName::RolloutTokenMean) => Aggregation::RolloutTokenMean,
            Some(AggregationName::Constant) => Aggregation::Constant {
                length_tokens: self
                    .aggregation_length_tokens
                    .or(completion_len_tokens_max)
                    .unwrap_or(0),
            },
            None => match (base.aggregation, self.aggregation_length_tokens) {
                (Aggregation::Constant { .. }, Some(length_tokens)) => {
                    Aggregation::Constant { length_tokens }
                }
                (aggregation, _) => aggregation,
            },
        }
    }

    /// What can only be seen in the file: keys that say nothing.
    fn check_keys(&self, problems: &mut Problems) {
        for (key, switch) in [
            ("dual_clip", self.dual_clip),
            ("delta", self.delta),
            ("log_ratio_clamp", self.log_ratio_clamp),
            ("kl_log_ratio_clamp", self.kl_log_ratio_clamp),
            ("kl_value_clamp", self.kl_value_clamp),
            ("value_clip", self.value_clip),
        ] {
            let is_true = switch == Some(Switch::Flag(true));
            problems.require(!is_true, key, "a number or false", "true");
        }
        let clips = [self.clip_low, self.clip_high];
        problems.require(
            self.clip.is_none() || clips.iter().any(Option::is_none),
            "clip",
            "absent where both clip_low and clip_high are set",
            format!("{:?}", self.clip.unwrap_or_default()),
        );
        if let (Some(length), Some(name)) = (self.aggregation_length_tokens, self.aggregation) {
            problems.require(
                name == AggregationName::Constant,
                "aggregation_length_tokens",
                "absent unless aggregation is \"constant\"",
                length,
            );
        }
    }

    /// Keys of a critic say nothing where there is none.
    fn check_critic_keys(&self, objective: &Objective, problems: &mut Problems) {
        let number = |value: Option<f64>| value.map(|value| format!("{value:?}"));
        let value_clip = self.value_clip.map(|switch| match switch.bound() {
            Some(bound) => format!("{bound:?}"),
            None => "false".to_owned(),
        });
        for (key, got) in [
            ("gamma", number(self.gamma)),
            ("lambda", number(self.lambda)),
            ("value_clip", value_clip),
        ] {
            if let (Some(got), None) = (got, objective.critic()) {
                let must = "absent unless advantage_baseline is \"value\"";
                problems.require(false, key, must, got);
            }
        }
    }
}

/// Ranges are written so that NaN fails.
fn check_ranges(objective: &Objective, problems: &mut Problems) {
    let mut at_least_0 = |key, value: f64| {
        let ok = 0.0 <= value && value.is_finite();
        problems.require(ok, key, "a finite number of at least 0", format!("{value:?}"));
    };
    at_least_0("clip_low", objective.clip_low);
    at_least_0("clip_high", objective.clip_high);
    at_least_0("kl", objective.kl_coef);
    at_least_0("distill", objective.distill_coef);
    at_least_0("entropy", objective.entropy_coef);
    at_least_0("advantage_eps", objective.advantage.eps);
    at_least_0("advantage_no_signal_std_max", objective.advantage.no_signal_std_max);
    let cap = objective.importance_cap;
    let is_cap = 1.0 <= cap && cap.is_finite();
    let must = "a finite number of at least 1";
    problems.require(is_cap, "importance_cap", must, format!("{cap:?}"));
    let floor = objective.importance_floor;
    let is_floor = (0.0..=1.0).contains(&floor);
    problems.require(is_floor, "importance_floor", "a number from 0 to 1", format!("{floor:?}"));
    for (key, share) in [("gamma", objective.value.gamma), ("lambda", objective.value.lambda)] {
        let is_share = (0.0..=1.0).contains(&share);
        problems.require(is_share, key, "a number from 0 to 1", format!("{share:?}"));
    }
    let mut above = |key, bound: Option<f64>, floor: f64| {
        let ok = bound.is_none_or(|bound| floor < bound && bound.is_finite());
        let got = format!("{:?}", bound.unwrap_or_default());
        problems.require(ok, key, format!("a finite number above {floor:?}, or false"), got);
    };
    above("dual_clip", objective.dual_clip, 1.0);
    above("delta", objective.delta, 0.0);
    above("log_ratio_clamp", objective.log_ratio_clamp, 0.0);
    above("kl_log_ratio_clamp", objective.kl_log_ratio_clamp, 0.0);
    above("kl_value_clamp", objective.kl_value_clamp, 0.0);
    above("value_clip", objective.value.clip, 0.0);
    if let Aggregation::Constant { length_tokens } = objective.aggregation {
        let must = "at least 1 token where aggregation is \"constant\"";
        problems.require(1 <= length_tokens, "aggregation_length_tokens", must, length_tokens);
    }
}

/// Settings that contradict each other.
fn check_together(objective: &Objective, problems: &mut Problems) {
    if objective.surrogate == Surrogate::Cispo {
        let must = "false where surrogate is \"cispo\"";
        for (key, bound) in [("dual_clip", objective.dual_clip), ("delta", objective.delta)] {
            let got = format!("{:?}", bound.unwrap_or_default());
            problems.require(bound.is_none(), key, must, got);
        }
    }
    let is_in_loss = !(objective.kl_in_reward && objective.kl_times_ratio);
    let must = "false where kl_in_reward is true: a reward has no ratio";
    problems.require(is_in_loss, "kl_times_ratio", must, objective.kl_times_ratio);
    let AdvantageRule { baseline, scale, .. } = objective.advantage;
    problems.require(
        scale != Scale::Group || baseline.is_of_group(),
        "advantage_scale",
        match baseline {
            Baseline::Value => "\"whiten\" or \"none\" where advantage_baseline is \"value\"",
            _ => "\"batch\", \"whiten\" or \"none\" where advantage_baseline isn't the group's",
        },
        "\"group\"",
    );
    problems.require(
        scale != Scale::Batch || baseline != Baseline::Value,
        "advantage_scale",
        "\"whiten\" or \"none\" where advantage_baseline is \"value\"",
        "\"batch\"",
    );
}

#[derive(Default)]
struct Problems {
    found: Vec<Problem>,
}

impl Problems {
    fn require(
        &mut self,
        ok: bool,
        key: &'static str,
        must: impl Into<String>,
        got: impl fmt::Display,
    ) {
        if !ok {
            self.found.push(Problem { key, must: must.into(), got: got.to_string() });
        }
    }

    fn preset(&mut self, name: Option<&str>) -> Preset {
        let Some(name) = name else { return Preset::default() };
        Preset::from_name(name).unwrap_or_else(|| {
            let names: Vec<String> =
                Preset::ALL.iter().map(|p| format!("{:?}", p.name())).collect();
            self.require(false, "preset", format!("one of {}", names.join(", ")), name);
            Preset::default()
        })
    }
}

impl From<Objective> for ObjectiveFile {
    fn from(objective: Objective) -> Self {
        let (aggregation, length_tokens) = match objective.aggregation {
            Aggregation::SequenceMean => (AggregationName::SequenceMean, None),
            Aggregation::TokenMean => (AggregationName::TokenMean, None),
            Aggregation::RolloutTokenMean => (AggregationName::RolloutTokenMean, None),
            Aggregation::Constant { length_tokens } => {
                (AggregationName::Constant, Some(length_tokens))
            }
        };
        let critic = objective.critic().copied();
        Self {
            kind: Some(Kind::Grpo),
            preset: None,
            clip: None,
            clip_low: Some(objective.clip_low),
            clip_high: Some(objective.clip_high),
            dual_clip: Some(objective.dual_clip.into()),
            delta: Some(objective.delta.into()),
            surrogate: Some(objective.surrogate),
            ratio: Some(objective.ratio),
            log_ratio_clamp: Some(objective.log_ratio_clamp.into()),
            importance_cap: Some(objective.importance_cap),
            importance_floor: Some(objective.importance_floor),
            importance_mode: Some(objective.importance_mode),
            importance_level: Some(objective.importance_level),
            kl: Some(objective.kl_coef),
            kl_in_reward: Some(objective.kl_in_reward),
            kl_estimator: Some(objective.kl_estimator),
            kl_times_ratio: Some(objective.kl_times_ratio),
            kl_log_ratio_clamp: Some(objective.kl_log_ratio_clamp.into()),
            kl_value_clamp: Some(objective.kl_value_clamp.into()),
            distill: Some(objective.distill_coef),
            entropy: Some(objective.entropy_coef),
            entropy_mean: Some(objective.entropy_mean),
            aggregation: Some(aggregation),
            aggregation_length_tokens: length_tokens,
            count_empty_sequences: Some(objective.count_empty_sequences),
            advantage_baseline: Some(objective.advantage.baseline),
            advantage_scale: Some(objective.advantage.scale),
            advantage_std: Some(objective.advantage.std),
            advantage_eps: Some(objective.advantage.eps),
            advantage_no_signal_std_max: Some(objective.advantage.no_signal_std_max),
            advantage_single: Some(objective.advantage.single),
            gamma: critic.map(|rule| rule.gamma),
            lambda: critic.map(|rule| rule.lambda),
            value_clip: critic.map(|rule| rule.clip.into()),
        }
    }
}

impl TryFrom<ObjectiveFile> for Objective {
    type Error = String;

    fn try_from(file: ObjectiveFile) -> Result<Self, String> {
        file.resolve(None).map_err(|problems| {
            problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::objective::reference::variants;

    fn read(value: serde_json::Value) -> Result<Objective, Vec<String>> {
        let file: ObjectiveFile = serde_json::from_value(value).map_err(|e| vec![e.to_string()])?;
        file.resolve(Some(256)).map_err(|all| all.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn an_empty_table_is_the_papers_objective() {
        assert_eq!(read(json!({})).unwrap(), Preset::DeepseekR1.objective(256));
        let example = json!({"kind": "grpo", "clip": 0.2, "kl": 0.001});
        assert_eq!(read(example).unwrap(), Preset::DeepseekR1.objective(256));
    }

    #[test]
    fn keys_override_the_preset() {
        let objective =
            read(json!({"preset": "verl-0.9", "dual_clip": false, "clip": 0.3, "clip_low": 0.1, "kl": 1}))
                .unwrap();
        let expected = Objective {
            dual_clip: None,
            clip_low: 0.1,
            clip_high: 0.3,
            kl_coef: 1.0,
            ..Preset::Verl0_9.objective(256)
        };
        assert_eq!(objective, expected);
    }

    #[test]
    fn the_constant_is_the_longest_completion_unless_said() {
        let constant = |length_tokens| Aggregation::Constant { length_tokens };
        for (value, expected) in [
            (json!({"aggregation": "constant"}), constant(256)),
            (json!({"aggregation": "constant", "aggregation_length_tokens": 7}), constant(7)),
            (json!({"preset": "dr-grpo"}), constant(256)),
            (json!({"preset": "dr-grpo", "aggregation_length_tokens": 7}), constant(7)),
            (json!({"preset": "dr-grpo", "aggregation": "token_mean"}), Aggregation::TokenMean),
        ] {
            assert_eq!(read(value).unwrap().aggregation, expected);
        }
    }

    #[test]
    fn the_written_form_reads_back_as_the_same_objective() {
        let presets = Preset::ALL.iter().map(|preset| preset.objective(256));
        for objective in presets.chain(variants().into_iter().map(|(_, with, _)| with)) {
            let text = serde_json::to_string(&objective).unwrap();
            assert_eq!(serde_json::from_str::<Objective>(&text).unwrap(), objective, "{text}");
        }
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let problems = read(json!({
            "preset": "trl", "clip_low": -1.0, "dual_clip": 0.5, "delta": true, "kl": -0.1,
            "importance_cap": 0.9, "distill": -1,
            "aggregation": "constant", "aggregation_length_tokens": 0, "advantage_eps": -1.0,
        }))
        .unwrap_err();
        assert_eq!(
            problems,
            [
                "`preset` must be one of \"deepseek-r1\", \"trl-1.16\", \"verl-0.9\", \"dr-grpo\", \
                 \"dapo\", \"gspo\", \"cispo\", \"rloo\", \"reinforce++\", \"reinforce++-baseline\", \
                 \"ppo\", \"distill\", found trl",
                "`delta` must be a number or false, found true",
                "`clip_low` must be a finite number of at least 0, found -1.0",
                "`kl` must be a finite number of at least 0, found -0.1",
                "`distill` must be a finite number of at least 0, found -1.0",
                "`advantage_eps` must be a finite number of at least 0, found -1.0",
                "`importance_cap` must be a finite number of at least 1, found 0.9",
                "`dual_clip` must be a finite number above 1.0, or false, found 0.5",
                "`aggregation_length_tokens` must be at least 1 token where aggregation is \
                 \"constant\", found 0",
            ]
        );
    }

    #[test]
    fn keys_that_would_be_ignored_are_problems() {
        for (value, key) in [
            (json!({"preset": "verl-0.9", "surrogate": "cispo"}), "`dual_clip` must be false"),
            (json!({"preset": "cispo", "delta": 2}), "`delta` must be false"),
            (json!({"advantage_baseline": "batch"}), "`advantage_scale` must be \"batch\","),
            (json!({"kl_in_reward": true, "kl_times_ratio": true}), "`kl_times_ratio` must be"),
            (json!({"gamma": 0.9}), "`gamma` must be absent unless"),
            (json!({"lambda": 0.9}), "`lambda` must be absent unless"),
            (json!({"value_clip": false}), "`value_clip` must be absent unless"),
            (json!({"preset": "ppo", "lambda": 1.1}), "`lambda` must be a number from 0 to 1"),
            (json!({"preset": "ppo", "gamma": -0.1}), "`gamma` must be a number from 0 to 1"),
            (
                json!({"preset": "ppo", "value_clip": 0}),
                "`value_clip` must be a finite number above",
            ),
            (
                json!({"preset": "ppo", "value_clip": true}),
                "`value_clip` must be a number or false",
            ),
            (
                json!({"preset": "ppo", "advantage_scale": "batch"}),
                "`advantage_scale` must be \"whiten\"",
            ),
            (json!({"advantage_baseline": "value"}), "`advantage_scale` must be \"whiten\""),
            (json!({"importance_floor": 1.5}), "`importance_floor` must be a number from 0 to 1"),
            (json!({"clip": 0.2, "clip_low": 0.1, "clip_high": 0.3}), "`clip` must be absent"),
            (
                json!({"aggregation": "token_mean", "aggregation_length_tokens": 9}),
                "`aggregation_len",
            ),
            (json!({"klx": 0.1}), "unknown field `klx`"),
            (json!({"ratio": "word"}), "unknown variant `word`"),
        ] {
            let problems = read(value).unwrap_err();
            assert!(problems.len() == 1 && problems[0].starts_with(key), "{problems:?}");
        }
    }
}
