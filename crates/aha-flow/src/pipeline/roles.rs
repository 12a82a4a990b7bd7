//! Whether the models that a stage names can be what they are named for.

use super::reader::Reader;
use super::resolve::{Facts, rewards_of};
use super::stages::{Stage, StageKind};

/// The model that a critic starts from, where it isn't the stage's own.
pub(super) fn named_critic(kind: &StageKind) -> Option<&str> {
    match kind {
        StageKind::Rl(rl) => rl.critic.as_ref()?.model.as_deref(),
        _ => None,
    }
}

/// A critic reads the tokens that the policy writes, at the same positions.
pub(super) fn check_critic(stage: &Stage, path: &str, facts: &Facts, reader: &mut Reader<'_>) {
    let Some(name) = named_critic(&stage.kind) else { return };
    let policy = stage.kind.models().first().and_then(|name| facts.models.get(name));
    let (Some(policy), Some(critic)) = (policy, facts.models.get(name)) else { return };
    let path = format!("{path}.critic.model");
    let [tokens, positions] = [
        [critic.tokenizer_vocab_size, policy.tokenizer_vocab_size],
        [critic.max_position_embeddings, policy.max_position_embeddings],
    ];
    let message = if tokens[0] < tokens[1] {
        format!(
            "the critic `{name}` knows {} tokens, and the policy writes {}",
            tokens[0], tokens[1]
        )
    } else if positions[0] < positions[1] {
        format!(
            "the critic `{name}` has {} positions, and the policy {}",
            positions[0], positions[1]
        )
    } else {
        return;
    };
    if reader.is_good(&path) {
        let hint = "take one that was made of a model of the same family, or leave it out";
        reader.report_at(&path, message, Some(hint.to_owned()));
    }
}

/// A reward model writes no text, and a language model scores none.
pub(super) fn check_roles(stage: &Stage, path: &str, facts: &Facts, reader: &mut Reader<'_>) {
    let names = stage.kind.models();
    let may_be_either = matches!(stage.kind, StageKind::RewardModel(_) | StageKind::Export(_));
    for (idx, name) in names.iter().enumerate().filter(|_| !may_be_either) {
        let key = format!("{path}.model");
        let path = if names.len() > 1 { format!("{key}[{idx}]") } else { key };
        let is_reward_model = facts.models.get(name).is_some_and(|model| model.is_reward_model);
        if is_reward_model && reader.is_good(&path) {
            let message = format!(
                "`{name}` is a reward model, which writes no text: a stage of kind `{}` needs a \
                 language model",
                stage.kind.word()
            );
            let hint = format!("give it to a reward: `{{ kind = \"model\", model = \"{name}\" }}`");
            reader.report_at(&path, message, Some(hint));
        }
    }
    for (path, reward) in rewards_of(&stage.kind, path) {
        let Some((name, needs_moments)) = reward.reward_model() else { continue };
        let Some(model) = facts.models.get(name) else { continue };
        let (key, normalise) = (format!("{path}.model"), format!("{path}.normalise"));
        if !model.is_reward_model && reader.is_good(&key) {
            let message = format!("`{name}` is a language model, which has no head that scores");
            let hint = "train a reward model with a stage of kind \"reward-model\", and name that";
            reader.report_at(&key, message, Some(hint.to_owned()));
        } else if needs_moments && !model.has_score_moments && reader.is_good(&normalise) {
            let message =
                format!("`{name}` was saved without the mean and deviation of its scores");
            let hint = "leave `normalise` out, and set `scale` by hand".to_owned();
            reader.report_at(&normalise, message, Some(hint));
        }
    }
}

/// A model that is asked about another one's tokens has to know them. Whether the tokenizers are the same in all is
/// known when they are loaded.
pub(super) fn check_guide(stage: &Stage, path: &str, facts: &Facts, reader: &mut Reader<'_>) {
    let Some((key, name)) = stage.kind.guide() else { return };
    let own = stage.kind.models().first().and_then(|name| facts.models.get(name));
    let (Some(guide), Some(own)) = (facts.models.get(name), own) else { return };
    let path = format!("{path}.{key}");
    if !reader.is_good(&path) {
        return;
    }
    if guide.is_reward_model {
        let message = format!("`{name}` is a reward model, which has no log-probs of tokens");
        let hint = format!("give `{key}` a language model");
        reader.report_at(&path, message, Some(hint));
    } else if guide.tokenizer_vocab_size != own.tokenizer_vocab_size {
        let message = format!(
            "`{name}` has a tokenizer of {} tokens, the model that learns one of {}: they have to \
             be the same",
            guide.tokenizer_vocab_size, own.tokenizer_vocab_size
        );
        let hint = format!("give `{key}` a model of the same family, or one trained from it");
        reader.report_at(&path, message, Some(hint));
    } else if let StageKind::Rl(rl) = &stage.kind
        && guide.max_position_embeddings <= rl.sampling.max_tokens
    {
        let (tokens, positions) = (rl.sampling.max_tokens, guide.max_position_embeddings);
        let message = format!(
            "`{name}` has {positions} positions: a completion of `sampling.max_tokens` = {tokens} \
             tokens and its prompt are more"
        );
        let hint = "lower `sampling.max_tokens`, or take another teacher".to_owned();
        reader.report_at(&path, message, Some(hint));
    }
}
