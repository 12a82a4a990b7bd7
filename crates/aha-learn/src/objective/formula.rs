//! The formula that will run, as text.

use super::{
    Aggregation, EntropyMean, ImportanceMode, KlEstimator, Objective, RatioLevel, Surrogate,
};
use crate::advantage::{AdvantageRule, Baseline, Scale, SingleRule, StdEstimator};
use crate::value::ValueRule;

/// The loss in words and symbols, every constant filled in, for people to read before a run.
///
/// Two objectives that compute different things have different texts.
pub fn formula(objective: &Objective) -> String {
    let mut lines = match objective.critic() {
        Some(rule) => critic_lines(objective, rule),
        None => advantage_lines(objective),
    };
    if objective.critic().is_none() && objective.kl_reward_coef() != 0.0 {
        let penalty = format!("r_i less {:?} sum_t KL_t", objective.kl_reward_coef());
        lines.push(format!("         r_i: {penalty}, KL_t with old_t in place of logp_t"));
    }
    lines.extend(ratio_lines(objective));
    lines.extend(policy_lines(objective));
    lines.extend(kl_lines(objective));
    if objective.distill_coef != 0.0 {
        lines.push("D_t    = sum_v p_t(v) (log p_t(v) - log q_t(v))".to_owned());
        lines.push(
            "         p_t: the policy, q_t: the teacher, at the sampling temperature".to_owned(),
        );
    }
    lines.extend(loss_lines(objective));
    let mut text = lines.join("\n");
    text.push('\n');
    text
}

/// Advantages of tokens, and the critic's loss.
fn critic_lines(objective: &Objective, rule: &ValueRule) -> Vec<String> {
    let AdvantageRule { scale, std, eps, no_signal_std_max, .. } = objective.advantage;
    let ValueRule { gamma, lambda, clip } = rule;
    let mut lines = match scale {
        Scale::Whiten => vec![
            format!("A_t    = (G_t - mean(G)) / (std(G) + {eps:?})"),
            format!(
                "         mean(G) and std(G) over the tokens of the batch, std divides by {}",
                divisor(std)
            ),
            format!("         A_t = 0 where std(G) <= {no_signal_std_max:?}"),
        ],
        Scale::Group | Scale::Batch | Scale::None => vec!["A_t    = G_t".to_owned()],
    };
    lines.push(format!("G_t    = delta_t + {gamma:?} {lambda:?} G_{{t+1}}"));
    lines.push(format!("delta_t = r_t + {gamma:?} V_{{t+1}} - V_t"));
    lines.push(match objective.kl_reward_coef() {
        0.0 => "         r_t = r_i at the last token of o_i, else 0".to_owned(),
        coef => format!(
            "         r_t = [t last] r_i - {coef:?} KL_t, KL_t with old_t in place of logp_t"
        ),
    });
    lines.push("         V_t: the critic before token t, 0 after the last".to_owned());
    let free = "(V'_t - R_t)^2";
    lines.push(match clip {
        None => format!("critic = 1/N sum_i sum_t 1/2 {free}"),
        Some(clip) => format!(
            "critic = 1/N sum_i sum_t 1/2 max({free}, (clip(V'_t, V_t - {clip:?}, V_t + {clip:?}) - R_t)^2)"
        ),
    });
    lines.push("         R_t = G_t + V_t; V'_t: the critic as it learns".to_owned());
    lines
}

fn divisor(std: StdEstimator) -> &'static str {
    match std {
        StdEstimator::Population => "n",
        StdEstimator::Sample => "n-1",
    }
}

fn advantage_lines(objective: &Objective) -> Vec<String> {
    let rule = &objective.advantage;
    let divisor = divisor(rule.std);
    let eps = rule.eps;
    let (deviation, baseline) = match rule.baseline {
        Baseline::Group => ("r_i - mean_g", "over the scored completions of a prompt"),
        Baseline::LeaveOneOut => {
            ("r_i - mean_{j != i} r_j", "over the other scored completions of the prompt")
        }
        Baseline::Batch => ("r_i - mean_batch", "over the scored completions of the batch"),
        Baseline::None | Baseline::Value => ("r_i", "whatever the others got"),
    };
    let (advantage, std) = match rule.scale {
        Scale::Group => (
            format!("({deviation}) / (std_g + {eps:?})"),
            format!("{baseline}, std divides by {divisor}"),
        ),
        Scale::Batch => (
            format!("({deviation}) / (std_batch + {eps:?})"),
            format!("mean {baseline}, std over those of the batch, divides by {divisor}"),
        ),
        Scale::Whiten => (
            format!("(d_i - mean(d)) / (std(d) + {eps:?}), d_i = {deviation}"),
            format!(
                "{baseline}; mean(d) and std(d) over the tokens of the batch, std divides by {divisor}"
            ),
        ),
        Scale::None => (deviation.to_owned(), baseline.to_owned()),
    };
    let std_of = match (rule.scale, rule.baseline) {
        (Scale::Whiten, _) => "std(d)".to_owned(),
        (Scale::Group, _) => "std_g".to_owned(),
        (_, Baseline::Batch) => "std_batch".to_owned(),
        (Scale::Batch | Scale::None, _) => format!("the group's std (divides by {divisor})"),
    };
    let single = match rule.single {
        SingleRule::Zero => "one scored completion: A_i = 0",
        SingleRule::Reward => "one scored completion: as if mean were 0 and std 1",
    };
    let mut lines = vec![format!("A_i    = {advantage}"), format!("         {std}")];
    let zero = format!("         A_i = 0 where {std_of} <= {:?}", rule.no_signal_std_max);
    match rule.baseline {
        Baseline::Group | Baseline::LeaveOneOut => lines.push(format!("{zero}; {single}")),
        Baseline::None if rule.scale != Scale::Whiten => {}
        Baseline::Batch | Baseline::None | Baseline::Value => lines.push(zero),
    }
    lines
}

fn ratio_lines(objective: &Objective) -> Vec<String> {
    let clamp = |inner: &str| match objective.log_ratio_clamp {
        Some(bound) => format!("clamp({inner}, ±{bound:?})"),
        None => inner.to_owned(),
    };
    let line = match objective.ratio {
        RatioLevel::Token => format!("rho_t  = exp({})", clamp("logp_t - old_t")),
        RatioLevel::Sequence => {
            format!(
                "rho_t  = exp({}), the same for all t of o_i",
                clamp("1/|o_i| sum_s (logp_s - old_s)")
            )
        }
    };
    vec![line]
}

fn policy_lines(objective: &Objective) -> Vec<String> {
    let (low, high) = (objective.clip_low, objective.clip_high);
    let advantage = if objective.critic().is_some() { "A_t" } else { "A_i" };
    if objective.surrogate == Surrogate::Cispo {
        return vec![
            format!("L_t    = -sg(clip(rho_t, 1 - {low:?}, 1 + {high:?})) {advantage} logp_t"),
            "         sg: a constant in the gradient".to_owned(),
        ];
    }
    let free = match objective.delta {
        Some(delta) => format!("min(rho_t, {delta:?})"),
        None => "rho_t".to_owned(),
    };
    let mut lines = vec![format!(
        "L_t    = -min({free} {advantage}, clip(rho_t, 1 - {low:?}, 1 + {high:?}) {advantage})"
    )];
    if let Some(bound) = objective.dual_clip {
        lines.push(format!(
            "         where {advantage} < 0: L_t = min(L_t, -{bound:?} {advantage})"
        ));
    }
    lines
}

fn kl_lines(objective: &Objective) -> Vec<String> {
    if objective.kl_coef == 0.0 {
        return Vec::new();
    }
    let estimate = match objective.kl_estimator {
        KlEstimator::K1 => "logp_t - ref_t".to_owned(),
        KlEstimator::K2 => "(ref_t - logp_t)^2 / 2".to_owned(),
        KlEstimator::K3 => match objective.kl_value_clamp {
            Some(bound) => format!("clamp(exp(d_t) - d_t - 1, ±{bound:?})"),
            None => "exp(d_t) - d_t - 1".to_owned(),
        },
    };
    let estimate = match (objective.kl_times_ratio, objective.kl_estimator) {
        (false, _) => estimate,
        (true, _) => format!("rho_t ({estimate}), differentiated through rho_t"),
    };
    let mut lines = vec![format!("KL_t   = {estimate}")];
    if objective.kl_estimator == KlEstimator::K3 {
        lines.push(match objective.kl_log_ratio_clamp {
            Some(bound) => format!("         d_t = clamp(ref_t - logp_t, ±{bound:?})"),
            None => "         d_t = ref_t - logp_t".to_owned(),
        });
    }
    lines
}

fn loss_lines(objective: &Objective) -> Vec<String> {
    let kl = match objective.kl_loss_coef() {
        0.0 => String::new(),
        coef => format!(" + {coef:?} KL_t"),
    };
    let distill = match objective.distill_coef {
        0.0 => String::new(),
        coef => format!(" + {coef:?} D_t"),
    };
    let sequences = if objective.count_empty_sequences {
        "B: completions of the minibatch, empty ones too"
    } else {
        "B: completions of the minibatch that have a trained token"
    };
    let (aggregate, legend) = match objective.aggregation {
        Aggregation::SequenceMean => ("1/B sum_i 1/|o_i| sum_t".to_owned(), sequences),
        Aggregation::TokenMean => {
            ("1/N sum_i sum_t".to_owned(), "N: trained tokens of the minibatch")
        }
        Aggregation::RolloutTokenMean => (
            "1/N sum_i sum_t".to_owned(),
            "N: trained tokens of the rollout batch / its minibatches",
        ),
        Aggregation::Constant { length_tokens } => {
            (format!("1/(B {length_tokens}) sum_i sum_t"), sequences)
        }
    };
    let mut lines = vec![format!("loss   = {aggregate} (w_t L_t{kl}{distill})")];
    if objective.entropy_coef != 0.0 {
        let mean = match objective.entropy_mean {
            EntropyMean::Tokens => "1/(trained tokens of the minibatch) sum_i sum_t",
            EntropyMean::AsLoss => &aggregate,
        };
        lines.push(format!("         - {:?} {mean} entropy_t", objective.entropy_coef));
    }
    lines.push(format!("         {legend}"));
    lines.push(format!(
        "         w_t = {}: 1 unless the sampler's weights are int8 or older",
        importance(objective)
    ));
    lines
}

/// The importance weight of a token.
fn importance(objective: &Objective) -> String {
    let (floor, cap) = (objective.importance_floor, objective.importance_cap);
    let weight = match objective.importance_level {
        RatioLevel::Token => "exp(old_t - behaviour_t)",
        RatioLevel::Sequence => "exp(sum_s (old_s - behaviour_s))",
    };
    match objective.importance_mode {
        ImportanceMode::Truncate if floor == 0.0 => format!("min({weight}, {cap:?})"),
        ImportanceMode::Truncate => format!("clip({weight}, {floor:?}, {cap:?})"),
        ImportanceMode::Mask => format!("{weight}, and 0 outside of {floor:?} to {cap:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::reference::variants;
    use crate::preset::Preset;

    fn check(preset: Preset, expected: &str) {
        let found = formula(&preset.objective(256));
        assert_eq!(found.trim(), expected.trim(), "\n{found}");
    }

    #[test]
    fn the_paper() {
        check(
            Preset::DeepseekR1,
            "
A_i    = (r_i - mean_g) / (std_g + 1e-8)
         over the scored completions of a prompt, std divides by n
         A_i = 0 where std_g <= 1e-6; one scored completion: A_i = 0
rho_t  = exp(logp_t - old_t)
L_t    = -min(rho_t A_i, clip(rho_t, 1 - 0.2, 1 + 0.2) A_i)
KL_t   = exp(d_t) - d_t - 1
         d_t = ref_t - logp_t
loss   = 1/B sum_i 1/|o_i| sum_t (w_t L_t + 0.001 KL_t)
         B: completions of the minibatch, empty ones too
         w_t = min(exp(old_t - behaviour_t), 2.0): 1 unless the sampler's weights are int8 or older",
        );
    }

    #[test]
    fn verl() {
        check(
            Preset::Verl0_9,
            "
A_i    = (r_i - mean_g) / (std_g + 1e-6)
         over the scored completions of a prompt, std divides by n-1
         A_i = 0 where std_g <= 0.0; one scored completion: as if mean were 0 and std 1
rho_t  = exp(clamp(logp_t - old_t, ±20.0))
L_t    = -min(rho_t A_i, clip(rho_t, 1 - 0.2, 1 + 0.2) A_i)
         where A_i < 0: L_t = min(L_t, -3.0 A_i)
loss   = 1/N sum_i sum_t (w_t L_t)
         N: trained tokens of the minibatch
         w_t = min(exp(old_t - behaviour_t), 2.0): 1 unless the sampler's weights are int8 or older",
        );
    }

    #[test]
    fn ppo() {
        check(
            Preset::Ppo,
            "
A_t    = (G_t - mean(G)) / (std(G) + 1e-8)
         mean(G) and std(G) over the tokens of the batch, std divides by n-1
         A_t = 0 where std(G) <= 0.0
G_t    = delta_t + 1.0 0.95 G_{t+1}
delta_t = r_t + 1.0 V_{t+1} - V_t
         r_t = [t last] r_i - 0.05 KL_t, KL_t with old_t in place of logp_t
         V_t: the critic before token t, 0 after the last
critic = 1/N sum_i sum_t 1/2 max((V'_t - R_t)^2, (clip(V'_t, V_t - 0.2, V_t + 0.2) - R_t)^2)
         R_t = G_t + V_t; V'_t: the critic as it learns
rho_t  = exp(logp_t - old_t)
L_t    = -min(rho_t A_t, clip(rho_t, 1 - 0.2, 1 + 0.2) A_t)
KL_t   = logp_t - ref_t
loss   = 1/N sum_i sum_t (w_t L_t)
         N: trained tokens of the minibatch
         w_t = min(exp(old_t - behaviour_t), 2.0): 1 unless the sampler's weights are int8 or older",
        );
    }

    #[test]
    fn dr_grpo_and_the_entropy_bonus() {
        let objective = Objective {
            entropy_coef: 0.01,
            entropy_mean: EntropyMean::AsLoss,
            ..Preset::DrGrpo.objective(256)
        };
        let text = formula(&objective);
        assert!(text.starts_with("A_i    = r_i - mean_g\n"), "{text}");
        assert!(text.contains("loss   = 1/(B 256) sum_i sum_t (w_t L_t)\n"), "{text}");
        assert!(text.contains("- 0.01 1/(B 256) sum_i sum_t entropy_t\n"), "{text}");
    }

    #[test]
    fn every_option_shows() {
        for (name, with, without) in variants() {
            assert_ne!(formula(&with), formula(&without), "{name}");
        }
    }
}
