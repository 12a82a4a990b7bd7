// What is drawn of each kind of stage. The daemon's dashboard is built with this file too.
"use strict";

// The figures of a kind of stage: groups, each with its title and its panels. `keys` are metrics, of which the
// second one is dashed; `labels` say what they are. A panel of a `prefix` is made of all metrics that begin so.
const share = { isShare: true, isFromZero: true };
const ofTokens = { unit: "% of tokens", ...share };
const zero = { isFromZero: true };
const gradNorm = { title: "Gradient norm", keys: ["grad_norm"], unit: "global norm, before clipping", ...zero };
const rate = { title: "Learning rate", keys: ["lr"], unit: "of the optimizer's last step", ...zero, isExact: true };
const speed = { title: "Speed", keys: ["tokens_per_second"], unit: "tokens per second", ...zero };
const heldOut = { labels: ["trained on", "held out"] };
const pairs = [
  { title: "Accuracy", keys: ["accuracy", "held_out_accuracy"], ...heldOut, ...share, unit: "% of pairs", max: 1 },
  { title: "Loss", keys: ["loss", "held_out_loss"], ...heldOut, unit: "per pair", ...zero },
];
const panels = {
  rl: [
    { isHero: true, panels: [
      { title: "Accuracy", keys: ["accuracy", "cons_at_k"], labels: ["each completion (pass@1)",
        "majority of the group (cons@k)"], ...share, unit: "% right", max: 1 },
      { title: "Response length", keys: ["completion_len_tokens"], unit: "tokens per completion", ...zero },
    ] },
    { title: "Reward", panels: [
      { title: "Reward", keys: ["reward"], unit: "mean over completions", ...zero },
      { prefix: "reward_", title: (name) => `Reward: ${name}`, unit: "mean score", ...zero },
      { title: "Groups without signal", keys: ["no_signal_share"], ...share, unit: "% of groups" },
    ] },
    { title: "What completions are like", panels: [
      { title: "Reflection words", keys: ["reflections_mean"], unit: "per completion", ...zero },
      { title: "Completions that reflect", keys: ["reflecting_share"], ...share, unit: "% of completions" },
      { title: "Mixed language", keys: ["foreign_share"], ...share, unit: "% of words in another language" },
      { title: "Cut at the limit", keys: ["truncated_share"], ...share, unit: "% of completions" },
    ] },
    { title: "Policy", panels: [
      { title: "KL to the reference", keys: ["kl"], unit: "nats per token", ...zero },
      { title: "Divergence from the teacher", keys: ["teacher_kl"], unit: "nats per token", ...zero },
      { title: "Entropy", keys: ["entropy"], unit: "nats per token", ...zero },
      { title: "Clipped tokens", keys: ["clip_high_share", "clip_low_share"], labels: ["above", "below"],
        ...ofTokens },
      { title: "Mean importance ratio", keys: ["ratio_mean"], unit: "new over old probability" },
      { title: "Largest importance ratio", keys: ["ratio_max"], unit: "new over old probability", ...zero },
      { title: "Loss", keys: ["loss"], unit: "of the objective" },
      gradNorm,
      rate,
      { title: "Optimizer steps", keys: ["policy_version"], unit: "since the stage began", ...zero, isExact: true },
    ] },
    { title: "Critic", panels: [
      { title: "Value loss", keys: ["value_loss"], unit: "per token", ...zero },
      { title: "Explained variance", keys: ["explained_variance"], unit: "of returns: 1 is all of it", max: 1,
        ...zero },
      { title: "Values and returns", keys: ["value_mean", "returns_mean"], labels: ["value expected",
        "return found"], unit: "mean over tokens", ...zero },
      { title: "Clipped values", keys: ["value_clip_share"], ...ofTokens },
      { title: "Gradient norm of the critic", keys: ["critic_grad_norm"], unit: "global norm, before clipping",
        ...zero },
      { title: "Learning rate of the critic", keys: ["critic_lr"], unit: "of the optimizer's last step", ...zero,
        isExact: true },
    ] },
    { title: "Prompts", panels: [
      { prefix: "source_share_", title: () => "Prompts by source", isTogether: true, ...share,
        unit: "% of the step's prompts", max: 1 },
      { prefix: "source_reward_", title: () => "Reward by source", isTogether: true, unit: "mean over completions",
        ...zero },
      { title: "In the curriculum's band", keys: ["in_band_share", "all_in_band_share"], labels: ["asked",
        "all prompts"], ...share, unit: "% of prompts", max: 1 },
      { title: "Pass rate", keys: ["pass_rate", "all_pass_rate"], labels: ["asked", "all prompts"], ...share,
        unit: "% of completions that pass", max: 1 },
    ] },
    { title: "Sampling ahead of the learner", panels: [
      { title: "Age of tokens", keys: ["staleness_mean", "staleness_max"], labels: ["mean", "oldest"],
        unit: "publications of weights", ...zero },
      { title: "Groups too old", keys: ["stale_groups"], unit: "per step, not trained on", ...zero },
      { title: "Waiting", keys: ["sampler_idle_seconds", "learner_idle_seconds"], labels: ["sampler", "learner"],
        unit: "seconds per step", ...zero },
      { title: "Tokens in flight", keys: ["tokens_in_flight"], unit: "drawn and not trained on", ...zero },
    ] },
    { title: "Sampler and learner apart", panels: [
      { title: "Mean importance weight", keys: ["importance_mean"], unit: "learner over sampler" },
      { title: "Largest importance weight", keys: ["importance_max"], unit: "learner over sampler", ...zero },
      { title: "Weights cut off", keys: ["importance_cut_share"], ...ofTokens },
      { title: "Gap to the learner", keys: ["sampler_gap_mean"], unit: "nats per token", ...zero },
    ] },
    { title: "Time", panels: [
      speed,
      { title: "Time of a step", keys: ["sampling_seconds", "learning_seconds"], labels: ["sampling", "learning"],
        unit: "seconds", ...zero },
    ] },
  ],
  sft: [
    { panels: [
      { title: "Loss", keys: ["loss"], unit: "nats per token", ...zero },
      gradNorm,
      rate,
      { title: "Tokens in the loss", keys: ["trained_tokens"], unit: "tokens per step", ...zero },
      speed,
    ] },
  ],
  "reward-model": [
    { panels: [
      ...pairs,
      { title: "Margin", keys: ["margin", "held_out_margin"], ...heldOut, unit: "chosen less rejected score",
        ...zero },
      { title: "Mean score", keys: ["score_mean"], unit: "of completions" },
      { title: "Spread of scores", keys: ["score_std"], unit: "standard deviation", ...zero },
      gradNorm,
      rate,
      speed,
    ] },
  ],
  dpo: [
    { panels: [
      ...pairs,
      { title: "Margin", keys: ["margin", "held_out_margin"], ...heldOut,
        unit: "chosen less rejected implicit reward", ...zero },
      { title: "Implicit rewards", keys: ["reward_chosen", "reward_rejected"], labels: ["chosen", "rejected"],
        unit: "beta times the log-ratio" },
      { title: "Log-probs", keys: ["logp_chosen", "logp_rejected"], labels: ["chosen", "rejected"],
        unit: "nats per completion" },
      { title: "Likelihood of the chosen", keys: ["nll"], unit: "negative log-prob per token, in nats", ...zero },
      gradNorm,
      rate,
      speed,
    ] },
  ],
};
