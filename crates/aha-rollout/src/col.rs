//! The names of columns: one constant each, so that one quantity has one name in every table.

/// Advantage of a completion over its group, or the mean of its tokens'.
pub const ADVANTAGE: &str = "advantage";
/// Reference answer of a problem.
pub const ANSWER: &str = "answer";
/// Share of an evaluation's completions that have an answer.
pub const ANSWERED_SHARE: &str = "answered_share";
/// When a row was written, by the wall clock.
pub const AT: &str = "at";
/// Benchmark whose layout, prompt and verifier an evaluation used.
pub const BENCHMARK: &str = "benchmark";
/// Share of problems whose completion of the highest rank is right.
pub const BON_AT_K: &str = "bon_at_k";
/// Standard error of `bon_at_k`.
pub const BON_AT_K_SE: &str = "bon_at_k_se";
/// Share of problems whose completion of the highest rank is right, for each of `ks`.
pub const BON_AT_KS: &str = "bon_at_ks";
/// Standard errors of `bon_at_ks`.
pub const BON_AT_KS_SE: &str = "bon_at_ks_se";
/// The completion of a pair that was preferred.
pub const CHOSEN: &str = "chosen";
/// Tokens of the prompt and of the completion that was preferred.
pub const CHOSEN_TOKEN_IDS: &str = "chosen_token_ids";
/// Text that came out of the model.
pub const COMPLETION: &str = "completion";
/// Advantage of each of a completion's tokens.
pub const COMPLETION_ADVANTAGES: &str = "completion_advantages";
/// Whether each of a completion's tokens was forced into it.
pub const COMPLETION_FORCED_MASK: &str = "completion_forced_mask";
/// Number of a completion's tokens.
pub const COMPLETION_LEN_TOKENS: &str = "completion_len_tokens";
/// Mean number of tokens of an evaluation's completions.
pub const COMPLETION_LEN_TOKENS_MEAN: &str = "completion_len_tokens_mean";
/// Number of tokens that half of an evaluation's completions don't exceed.
pub const COMPLETION_LEN_TOKENS_MEDIAN: &str = "completion_len_tokens_median";
/// Number of tokens that 95 % of an evaluation's completions don't exceed.
pub const COMPLETION_LEN_TOKENS_P95: &str = "completion_len_tokens_p95";
/// Behaviour log-prob of each of a completion's tokens.
pub const COMPLETION_LOGPROBS: &str = "completion_logprobs";
/// Version of the policy that drew each of a completion's tokens.
pub const COMPLETION_POLICY_VERSIONS: &str = "completion_policy_versions";
/// A completion's tokens.
pub const COMPLETION_TOKEN_IDS: &str = "completion_token_ids";
/// What a critic expected before each of a completion's tokens.
pub const COMPLETION_VALUES: &str = "completion_values";
/// Share of problems whose majority answer is right.
pub const CONS_AT_K: &str = "cons_at_k";
/// Standard error of `cons_at_k`.
pub const CONS_AT_K_SE: &str = "cons_at_k_se";
/// Share of problems whose majority answer is right, for each of `ks`.
pub const CONS_AT_KS: &str = "cons_at_ks";
/// Standard errors of `cons_at_ks`.
pub const CONS_AT_KS_SE: &str = "cons_at_ks_se";
/// Name of an evaluation's data set.
pub const DATASET: &str = "dataset";
/// What an evaluated model computed with.
pub const DTYPE: &str = "dtype";
/// What went wrong.
pub const ERROR: &str = "error";
/// Identity of a training example.
pub const EXAMPLE_ID: &str = "example_id";
/// Number of a training example's tokens.
pub const EXAMPLE_LEN_TOKENS: &str = "example_len_tokens";
/// How often a prompt failed.
pub const FAILURES_COUNT: &str = "failures_count";
/// Why a completion ended.
pub const FINISH_REASON: &str = "finish_reason";
/// When a completion's last token was drawn, by the wall clock.
pub const FINISHED_AT: &str = "finished_at";
/// Whether a row is measured on and not trained on.
pub const IS_HELD_OUT: &str = "is_held_out";
/// Whether the learner used a row.
pub const IS_TRAINED: &str = "is_trained";
/// Samples per problem.
pub const K: &str = "k";
/// Numbers of samples that an evaluation gives figures for.
pub const KS: &str = "ks";
/// Whether each token of a training example counts in the loss.
pub const LOSS_MASK: &str = "loss_mask";
/// By how much one completion of a pair is better than the other.
pub const MARGIN: &str = "margin";
/// A conversation as JSON: a list of messages with `role` and `content`.
pub const MESSAGES: &str = "messages";
/// Name of a model.
pub const MODEL: &str = "model";
/// Name of a metric.
pub const NAME: &str = "name";
/// Mean share of right samples.
pub const PASS_AT_1: &str = "pass_at_1";
/// Standard error of `pass_at_1`.
pub const PASS_AT_1_SE: &str = "pass_at_1_se";
/// Share of problems with at least one right sample among k.
pub const PASS_AT_K: &str = "pass_at_k";
/// Standard error of `pass_at_k`.
pub const PASS_AT_K_SE: &str = "pass_at_k_se";
/// Unbiased estimate of pass@k for each of `ks`.
pub const PASS_AT_KS: &str = "pass_at_ks";
/// Standard errors of `pass_at_ks`.
pub const PASS_AT_KS_SE: &str = "pass_at_ks_se";
/// Optimizer steps that the weights that wrote a row had seen.
pub const POLICY_VERSION: &str = "policy_version";
/// Number of an evaluation's problems.
pub const PROBLEM_COUNT: &str = "problem_count";
/// A problem's text.
pub const PROMPT: &str = "prompt";
/// Identity of a prompt.
pub const PROMPT_ID: &str = "prompt_id";
/// The tokens that went into the model.
pub const PROMPT_TOKEN_IDS: &str = "prompt_token_ids";
/// Scorer that ranked the completions of an evaluation.
pub const RANK_BY: &str = "rank_by";
/// A model's Elo rating.
pub const RATING: &str = "rating";
/// Standard error of `rating`.
pub const RATING_SE: &str = "rating_se";
/// The completion of a pair that was not preferred.
pub const REJECTED: &str = "rejected";
/// Tokens of the prompt and of the completion that was not preferred.
pub const REJECTED_TOKEN_IDS: &str = "rejected_token_ids";
/// A completion's whole reward.
pub const REWARD: &str = "reward";
/// Why a part of the reward is missing.
pub const REWARD_ERROR: &str = "reward_error";
/// Identity of a rollout.
pub const ROLLOUT_ID: &str = "rollout_id";
/// Name of a run; only in tables that join several.
pub const RUN: &str = "run";
/// Which of its group's samples a completion is.
pub const SAMPLE_IDX: &str = "sample_idx";
/// Why the learner didn't use a row.
pub const SKIP_REASON: &str = "skip_reason";
/// Which data set or topic a problem is from.
pub const SOURCE: &str = "source";
/// Name of a pipeline's stage.
pub const STAGE: &str = "stage";
/// A stage's step.
pub const STEP: &str = "step";
/// Tests that check a problem's answer.
pub const TESTS: &str = "tests";
/// A training example's tokens.
pub const TOKEN_IDS: &str = "token_ids";
/// Tokens drawn per second of an evaluation's sampling.
pub const TOKENS_PER_SECOND: &str = "tokens_per_second";
/// Share of an evaluation's completions that were cut off.
pub const TRUNCATED_SHARE: &str = "truncated_share";
/// A metric's value.
pub const VALUE: &str = "value";
/// Share of problems whose majority answer is right, votes weighted by a scorer.
pub const WEIGHTED_CONS_AT_K: &str = "weighted_cons_at_k";
/// Standard error of `weighted_cons_at_k`.
pub const WEIGHTED_CONS_AT_K_SE: &str = "weighted_cons_at_k_se";
/// Share of problems whose majority answer is right, votes weighted by a scorer, for each of `ks`.
pub const WEIGHTED_CONS_AT_KS: &str = "weighted_cons_at_ks";
/// Standard errors of `weighted_cons_at_ks`.
pub const WEIGHTED_CONS_AT_KS_SE: &str = "weighted_cons_at_ks_se";
/// What an evaluated model's weights were multiplied as.
pub const WEIGHTS: &str = "weights";

/// What the column of a reward's part starts with.
pub const REWARD_PREFIX: &str = "reward_";

/// The column of the reward part called `name`.
pub fn reward(name: &str) -> String {
    format!("{REWARD_PREFIX}{name}")
}

/// The reward part whose column is called `column`.
pub fn reward_name(column: &str) -> Option<&str> {
    (column != REWARD_ERROR).then(|| column.strip_prefix(REWARD_PREFIX)).flatten()
}
