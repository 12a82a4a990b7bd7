//! What stages write.

use super::catalogue::StageOutput;
use super::stages::{EvalStage, Stage, StageKind};

impl Stage {
    /// The parts of the rewards of its completions.
    pub fn reward_names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for reward in self.kind.rewards() {
            // Names taken twice are reported elsewhere, and a table has each column once.
            if !names.iter().any(|name| name == reward.name()) {
                names.push(reward.name().to_owned());
            }
        }
        names
    }

    /// What it leaves under its name, but for queries, whose columns must be planned first.
    pub fn output(&self) -> Option<StageOutput> {
        match &self.kind {
            StageKind::Rl(_) | StageKind::Sample(_) => {
                Some(StageOutput::Rollouts { reward_names: self.reward_names() })
            }
            StageKind::Sft(_) => Some(StageOutput::SftExamples),
            StageKind::RewardModel(_) | StageKind::Dpo(_) => Some(StageOutput::Preferences),
            StageKind::Eval(_) => Some(StageOutput::Evals),
            StageKind::Query(_) | StageKind::Export(_) => None,
        }
    }

    /// The tables that it writes besides the one of its name, with what they hold.
    pub fn side_tables(&self) -> Vec<(String, StageOutput)> {
        let set_aside = |name: &str| (format!("{name}_set_aside"), StageOutput::SetAside);
        match &self.kind {
            StageKind::Sft(_)
            | StageKind::RewardModel(_)
            | StageKind::Dpo(_)
            | StageKind::Rl(_)
            | StageKind::Sample(_) => vec![set_aside(&self.name)],
            StageKind::Eval(eval) => {
                let reward_names = self.reward_names();
                let of_model = |model: String| {
                    let name = EvalStage::completions(&self.name, &model);
                    let rollouts = StageOutput::Rollouts { reward_names: reward_names.clone() };
                    [set_aside(&name), (name, rollouts)]
                };
                eval.subjects().into_iter().flat_map(of_model).collect()
            }
            StageKind::Query(_) | StageKind::Export(_) => Vec::new(),
        }
    }
}
