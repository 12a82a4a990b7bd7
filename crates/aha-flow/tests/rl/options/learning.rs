//! Keys of `rl`.

use super::{Case, Kind, error, model, optimizer, table, wide};

/// Three steps of four optimizer steps each, so that ratios move, with an `eps` that lets the size of gradients count.
pub(super) const STAGE: &str = r#"
[[stage]]
name = "zero"
kind = "rl"
model = "blank"
prompts = "SELECT id, prompt, answer FROM problems WHERE id <> 'bad'"
steps = 3
prompts_per_step = 4
group_size = 4
minibatches = 2
inner_epochs = 2
sampling = { max_tokens = 6 }
objective = { kl = 0.05 }
optimizer = { lr = 1e-2, eps = 1e-3 }
rewards = [{ kind = "regex", pattern = "^[0-4]" }, { kind = "math", extract = ["whole"] }]
"#;

const INT8: &str = "sampling.weights=int8";
const PPO: [&str; 2] =
    ["objective={ preset = 'ppo' }", "critic={ optimizer = { lr = 1e-2, eps = 1e-3 } }"];
const TAUGHT: [&str; 2] = ["objective={ preset = 'distill' }", "teacher=sage"];
/// Two passes over the problems; rates of 0 and 1 are outside of the band.
const CURRICULUM: [&str; 2] = ["curriculum={ rewards = ['regex'], momentum = 0.25 }", "steps=6"];
const SOURCES: &str = "prompts=SELECT id, prompt, answer, source FROM problems WHERE id <> 'bad'";
/// Two prompts whose answer isn't known.
const NULLS: &str = "prompts=SELECT id, prompt, CASE WHEN id IN ('p0', 'p5') THEN NULL ELSE answer END AS answer \
                     FROM problems WHERE id <> 'bad'";
const LORA: &str = "lora={ rank = 4, alpha = 8 }";
const ANY_TEXT: &str = "rewards=[{ kind = 'regex', pattern = '^[a-z0-9]' }]";
const TWO: &str = "rewards=[{ kind = 'regex', pattern = '^[0-4]' }, { kind = 'regex', name = 'end', pattern = '[0-3]$' }]";

fn kind() -> Kind {
    Kind {
        name: "zero",
        heading: "kind = \"rl\"",
        text: STAGE.to_owned(),
        left_out: &[
            ("objective.kind", "there is one"),
            ("objective.advantage_single", "has a test of its own"),
        ],
    }
}

fn of_stage() -> Vec<Case> {
    let wide = wide(&[ANY_TEXT]);
    vec![
        model("model", "sage", &[]),
        model(
            "prompts",
            "SELECT id, prompt, answer FROM problems WHERE id NOT IN ('bad', 'p1')",
            &[],
        ),
        model("template", "1{prompt}", &[]),
        model("template", "r1-zero", &wide),
        error("chat template", "template", "chat", &wide),
        model("steps", "2", &[]),
        model("prompts_per_step", "6", &[]),
        model("group_size", "3", &[]),
        model("shuffle", "false", &[]),
        model("overlong_filter", "true", &[]),
        table(
            "zero_set_aside",
            "prompt_failures_max",
            "1",
            &[
                "prompts=SELECT id, prompt, answer FROM problems WHERE id IN ('p0', 'p1', 'p2', 'bad')",
            ],
        ),
        model("reference.refresh_every", "2", &["objective.kl=0.5"]),
        model("teacher", "seer", &TAUGHT),
        model("minibatches", "1", &[]),
        model("inner_epochs", "1", &[]),
        table("zero", "max_staleness", "1", &[]),
        error("none ever is", "on_stale", "wait", &[]),
        model("lora.rank", "3", &[LORA]),
        model("lora.alpha", "9", &[LORA]),
        model("lora.targets", "['q_proj']", &[LORA]),
        model("lora.rslora", "true", &[LORA]),
        model("critic.model", "sage", &PPO),
        model("critic.warmup_steps", "1", &PPO),
    ]
}

fn of_draws() -> Vec<Case> {
    vec![
        model(
            "source_weights",
            "{ sums = 1, chat = 1 }",
            &[SOURCES, "source_weights={ sums = 3, chat = 1 }"],
        ),
        model("curriculum.band", "[0.0, 0.4]", &CURRICULUM),
        model("curriculum.rewards", "['math']", &CURRICULUM),
        model("curriculum.pass_score", "2.0", &CURRICULUM),
        model("curriculum.prior", "0.9", &CURRICULUM),
        model("curriculum.momentum", "0.9", &CURRICULUM),
        model("curriculum.revisit_share", "0.9", &CURRICULUM),
        model("sampling.temperature", "0.7", &[]),
        model("sampling.top_p", "0.5", &[]),
        model("sampling.top_k", "3", &[]),
        model("sampling.max_tokens", "5", &[]),
        model("sampling.stop", "['1']", &[]),
        model("sampling.stop_token_ids", "[7]", &[]),
        model("sampling.weights", "int8", &[]),
        model("resample_rounds", "2", &["rewards=[{ kind = 'regex', pattern = '^[67]' }]"]),
    ]
}

fn of_rewards() -> Vec<Case> {
    let both = |first: &str, second: &str| {
        format!(
            "[{{ kind = 'regex', pattern = '^[0-4]'{first} }}, {{ kind = 'regex', name = 'end', pattern = '[0-3]$'{second} }}]"
        )
    };
    let reward = |key, value: String, within: &[&str]| model(key, &value, within);
    vec![
        reward("rewards.kind", both("", "").replace("'end', pattern", "'math', pattern"), &[]),
        table("zero", "rewards.name", &both(", name = 'first'", ""), &[TWO]),
        reward("rewards.weight", both(", weight = -0.5", ""), &[TWO]),
        reward("rewards.clip", both(", clip = [1.0, 1.0]", ""), &[TWO]),
        reward("rewards.gate", both("", ", gate = 1.0"), &[TWO]),
        reward("rewards.sources", both("", ", sources = ['chat']"), &[TWO, SOURCES]),
        model(
            "rewards.on_null",
            "[{ kind = 'regex', pattern = '^[0-4]' }, { kind = 'math', extract = ['whole'], on_null = 'zero' }]",
            &[NULLS],
        ),
        model("reward_null", "zero", &[NULLS]),
        error("can't be scored", "reward_null", "stop", &[NULLS]),
        model("reward_clip", "[0.0, 0.0]", &[]),
    ]
}

fn of_objective() -> Vec<Case> {
    let bounded = [INT8, "objective.importance_cap=1.0"];
    vec![
        model("objective.preset", "dapo", &[]),
        model("objective.clip", "0.02", &[]),
        model("objective.clip_low", "0.02", &[]),
        model("objective.clip_high", "0.02", &[]),
        model("objective.dual_clip", "1.01", &[]),
        model("objective.delta", "1.01", &[]),
        model("objective.surrogate", "cispo", &[]),
        model("objective.ratio", "sequence", &[]),
        model("objective.log_ratio_clamp", "0.01", &[]),
        model("objective.importance_cap", "1.0", &[INT8]),
        model("objective.importance_floor", "1.0", &[INT8]),
        model("objective.importance_mode", "mask", &bounded),
        model("objective.importance_level", "sequence", &[INT8]),
        model("objective.kl", "0.5", &[]),
        model("objective.kl_in_reward", "true", &[]),
        model("objective.kl_estimator", "k1", &[]),
        model("objective.kl_times_ratio", "true", &[]),
        model("objective.kl_log_ratio_clamp", "1e-4", &[]),
        model("objective.kl_value_clamp", "1e-7", &[]),
        model("objective.distill", "0.5", &TAUGHT),
        model("objective.entropy", "0.1", &[]),
        model("objective.entropy_mean", "as_loss", &["objective.entropy=0.1"]),
        model("objective.aggregation", "token_mean", &[]),
        model("objective.aggregation_length_tokens", "3", &["objective.aggregation=constant"]),
        model("objective.count_empty_sequences", "false", &["overlong_filter=true"]),
    ]
}

fn of_advantages() -> Vec<Case> {
    vec![
        model("objective.advantage_baseline", "leave_one_out", &[]),
        model("objective.advantage_baseline", "value", &["objective.advantage_scale=none"]),
        model("objective.advantage_scale", "none", &[]),
        model("objective.advantage_std", "sample", &[]),
        model("objective.advantage_eps", "0.5", &[]),
        model("objective.advantage_no_signal_std_max", "0.45", &[]),
        model("objective.gamma", "0.9", &PPO),
        model("objective.lambda", "0.5", &PPO),
        model("objective.value_clip", "0.001", &PPO),
    ]
}

fn of_optimizers() -> Vec<Case> {
    let own = [
        "optimizer.lr",
        "optimizer.betas",
        "optimizer.eps",
        "optimizer.weight_decay",
        "optimizer.schedule.kind",
        "optimizer.schedule.warmup_steps",
        "optimizer.schedule.min_lr",
        "grad_clip",
    ];
    let of_critic = [
        "critic.optimizer.lr",
        "critic.optimizer.betas",
        "critic.optimizer.eps",
        "critic.optimizer.weight_decay",
        "critic.optimizer.schedule.kind",
        "critic.optimizer.schedule.warmup_steps",
        "critic.optimizer.schedule.min_lr",
        "critic.grad_clip",
    ];
    [optimizer(&own, &[]), optimizer(&of_critic, &PPO)].concat()
}

#[test]
fn every_key_of_rl_has_a_case() {
    let of_objective = [of_objective(), of_advantages()].concat();
    let others = [of_stage(), of_draws(), of_rewards(), of_optimizers()].concat();
    kind().check_cases(&[of_objective, others].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_of_rl_does_something() {
    kind().run([of_stage(), of_draws(), of_rewards()].concat()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_of_objectives_does_something() {
    kind().run([of_objective(), of_advantages()].concat()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_of_the_optimizers_of_policy_and_critic_does_something() {
    kind().run(of_optimizers()).await;
}
