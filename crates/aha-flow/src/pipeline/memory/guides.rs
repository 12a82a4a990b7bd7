//! What models take that are there beside the one that learns: references of a stage `dpo`, teachers, and those that
//! critics start from while they are read.

use super::{F32, Phase};
use crate::pipeline::catalogue::ModelFacts;
use crate::pipeline::stages::DpoStage;

/// Most tokens of a micro-batch of pairs, of which none is cut.
pub(super) fn pair_tokens(
    micro_batch_tokens: u32,
    max_tokens: u32,
    batch_size: u32,
    model: &ModelFacts,
) -> u64 {
    let pair = 2 * u64::from(max_tokens.min(model.max_position_embeddings));
    let batch = u64::from(batch_size).saturating_mul(pair);
    u64::from(micro_batch_tokens).max(pair).min(batch)
}

impl<'a> Phase<'a> {
    /// While the other model is held, before it is packed.
    pub(super) fn beside(mut self, guide: Option<&ModelFacts>) -> Self {
        if let Some(guide) = guide {
            self.found.add("other model", Phase::new(self.run, guide).weights());
        }
        self
    }

    /// While the other model is read.
    pub(super) fn reading(self, guide: Option<&ModelFacts>) -> Self {
        let mut reading = self.beside(guide);
        if let Some(guide) = guide {
            reading.found.add("file", Phase::new(reading.run, guide).weights());
        }
        reading
    }

    /// While the model is read that a critic starts from, where that isn't the stage's own.
    pub(super) fn reading_critic(self, guide: Option<&ModelFacts>, critic: &ModelFacts) -> Self {
        self.beside(guide).reading(Some(critic))
    }

    /// What a stage `dpo` does by turns: asking its reference, the model that it starts from or another, and training.
    pub(super) fn comparing(
        mut self,
        stage: &'a DpoStage,
        guide: Option<&ModelFacts>,
    ) -> Vec<Self> {
        let reference = guide.unwrap_or(self.model);
        let tokens = stage.micro_batch_tokens.tokens();
        let tokens = pair_tokens(tokens, stage.max_tokens, stage.batch_size, self.model);
        self.add_training_state(stage.lora.as_ref(), &stage.optimizer);
        // Weights that are frozen are the reference's as well.
        if guide.is_some() || stage.lora.is_none() {
            self.add_guide("reference", reference);
        }
        let mut asking = self.clone();
        asking.add_asking(reference, tokens);
        self.add_training(tokens, stage.activation_checkpointing.is_on());
        vec![asking, self]
    }

    /// The weights of a teacher; returns the phase in which it is asked.
    pub(super) fn add_teacher(&mut self, teacher: &ModelFacts, tokens: u64) -> Self {
        self.add_guide("teacher", teacher);
        let mut asking = self.clone();
        asking.add_asking(teacher, tokens);
        asking
    }

    /// Weights of the model that is asked about the learner's tokens, and packed ones.
    fn add_guide(&mut self, name: &'static str, guide: &ModelFacts) {
        let mut phase = Phase::new(self.run, guide);
        phase.add_packed();
        let bytes = phase.weights().saturating_add(phase.found.total_bytes());
        self.found.add(name, bytes);
    }

    /// What a micro-batch takes on its way through that model, before it runs through the learner's.
    fn add_asking(&mut self, guide: &ModelFacts, tokens: u64) {
        let phase = Phase::new(self.run, guide);
        let floats = 6 * phase.hidden() + phase.inner_len();
        self.found.add("activations", F32.saturating_mul(tokens).saturating_mul(floats));
        let rows = tokens.min(phase.logits_rows());
        self.found.add("logits", F32 * phase.vocab() * rows);
        self.add_scratch(tokens);
    }

    /// What a teacher predicts of a micro-batch while the learner's passes go on.
    pub(super) fn add_predictions(&mut self, teacher: &ModelFacts, tokens: u64) {
        let hidden = u64::from(teacher.hidden_size).saturating_mul(tokens);
        let rows = tokens.min(self.logits_rows());
        let logits = u64::from(teacher.vocab_size) * rows;
        self.found.add("teacher's predictions", F32 * hidden.saturating_add(logits));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{models, part};
    use super::super::{Breakdown, Others, facts_of_random, longest, memory_of, phases, predict};
    use super::*;
    use crate::pipeline::models::RandomModel;
    use crate::pipeline::resolve::Facts;

    #[test]
    fn a_stage_on_pairs_has_the_weights_of_its_reference() {
        let stage = "kind = 'dpo'\ndata = 'SELECT 1'";
        for model in models() {
            let packed = part("packed weights", stage, &model);
            assert_eq!(part("reference", stage, &model), 4 * model.param_count + packed);
            // 32 pairs of sequences of 1024 tokens are more than a micro-batch holds.
            let small = format!("{stage}\nmicro_batch_tokens = 128\nmax_tokens = 64");
            let of_tokens = |tokens: u64| 4 * tokens * (3 * 576 + 2 * 1536);
            assert_eq!(part("backward", stage, &model), of_tokens(4096));
            assert_eq!(part("backward", &small, &model), of_tokens(128));
        }
    }

    #[test]
    fn adapters_share_their_weights_with_a_reference_that_is_the_same_model() {
        let stage =
            |more: &str| format!("kind = 'dpo'\ndata = 'SELECT 1'\nlora = {{ rank = 8 }}\n{more}");
        let [model, _] = models();
        let of = |name: &str| part(name, &stage(""), &model);
        let count = 30 * 8 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536));
        assert_eq!(
            (of("adapters"), of("gradients"), of("optimizer")),
            (8 * count, 4 * count, 8 * count)
        );
        assert_eq!((of("weights"), of("reference")), (4 * model.param_count, 0));
        let ranks = part("activations", &stage(""), &model)
            - part("activations", "kind = 'dpo'\ndata = 'SELECT 1'", &model);
        assert_eq!(ranks, 4096 * 30 * 4 * 7 * 8);
        // Another model is one more.
        let text = "[models]\nbase = 'base'\n[[stage]]\nname = 'a'\nkind = 'dpo'\nmodel = 'base'\n\
                    reference = 'base'\ndata = 'SELECT 1'\nlora = {}";
        let text = crate::pipeline::Text { path: "p.toml", text, sets: &[] };
        let pipeline = crate::pipeline::parse(text).unwrap();
        let others = Others { guide: Some(&model), ..Others::default() };
        let found = predict(&pipeline, &pipeline.stages[0], Some(&model), &others).host;
        let reference = found.parts.iter().find(|part| part.name == "reference");
        assert_eq!(reference.map(|part| part.bytes), Some(8 * model.param_count));
    }

    /// Goal: a large model that is only asked counts with its own size. Method: a tiny model that learns from it.
    #[test]
    fn a_larger_reference_counts_as_what_it_is() {
        let [large, _] = models();
        let tiny = facts_of_random(&RandomModel::default(), 100);
        let text = "[run]\ndtype = 'bf16'\nthreads = 2\n[models]\nbase = 'base'\nlarge = 'large'\n[[stage]]\n\
                    name = 'a'\nkind = 'dpo'\nmodel = 'base'\nreference = 'large'\ndata = 'SELECT 1'\n\
                    max_tokens = 16\nbatch_size = 1";
        let text = crate::pipeline::Text { path: "p.toml", text, sets: &[] };
        let pipeline = crate::pipeline::parse(text).unwrap();
        let mut facts = Facts::default();
        facts.models.insert("base".to_owned(), tiny.clone());
        facts.models.insert("large".to_owned(), large.clone());
        let found = memory_of(&pipeline, &pipeline.stages[0], &facts).host;
        // Its file while it is read is more than its packed weights are later.
        let weights = 4 * large.param_count;
        let wanted = [("other model", weights), ("file", weights)];
        for (name, bytes) in wanted {
            let part = found.parts.iter().find(|part| part.name == name);
            assert_eq!(part.map(|part| part.bytes), Some(bytes), "{found:?}");
        }
    }

    /// It is loaded before the stage's query is asked.
    #[test]
    fn a_query_is_asked_beside_the_other_model() {
        let [large, _] = models();
        let text = "[run]\nquery_memory = '64GiB'\n[models]\nbase = 'base'\n[[stage]]\nname = 'a'\n\
                    kind = 'dpo'\nmodel = 'base'\nreference = 'base'\ndata = 'SELECT 1'";
        let text = crate::pipeline::Text { path: "p.toml", text, sets: &[] };
        let pipeline = crate::pipeline::parse(text).unwrap();
        let bytes = |guide: Option<&ModelFacts>| {
            let others = Others { guide, ..Others::default() };
            predict(&pipeline, &pipeline.stages[0], Some(&large), &others).host.total_bytes()
        };
        assert_eq!(bytes(Some(&large)), bytes(None) + 4 * large.param_count);
    }

    /// Goal: a critic with a model of its own is read beside all that the stage holds by then. Method: the phase
    /// itself, as the critic's training, which comes after it, takes more.
    #[test]
    fn a_critic_s_own_model_is_read_from_a_file_beside_the_others() {
        let [large, _] = models();
        let tiny = facts_of_random(&RandomModel::default(), 100);
        let phases_with = |critic: &str| {
            let text = format!(
                "[models]\nbase = 'base'\nlarge = 'large'\n[[stage]]\nname = 'a'\nkind = 'rl'\nmodel = 'base'\n\
                 prompts = 'SELECT 1'\nrewards = [{{ kind = 'math' }}]\nteacher = 'large'\n\
                 objective = {{ preset = 'ppo', distill = 0.1 }}\ncritic = {{ {critic} }}"
            );
            let text = crate::pipeline::Text { path: "p.toml", text: &text, sets: &[] };
            let pipeline = crate::pipeline::parse(text).unwrap();
            let others = Others { critic: Some(&large), guide: Some(&tiny), ..Others::default() };
            phases(&pipeline, &pipeline.stages[0], Some(&tiny), &others)
        };
        let bytes = |phase: &Breakdown, name: &str| -> Vec<u64> {
            phase.parts.iter().filter(|part| part.name == name).map(|part| part.bytes).collect()
        };
        let (own, same) = (phases_with("model = 'large'"), phases_with(""));
        assert_eq!(own.len(), same.len() + 1);
        let reading = own.iter().find(|phase| !same.contains(phase)).unwrap();
        let [tiny_bytes, large_bytes] = [&tiny, &large].map(|model| 4 * model.param_count);
        assert_eq!(bytes(reading, "weights"), [tiny_bytes]);
        assert_eq!(bytes(reading, "other model"), [tiny_bytes, large_bytes]);
        assert_eq!(bytes(reading, "file"), [large_bytes]);
    }

    #[test]
    fn a_teacher_is_held_beside_the_model_that_learns_from_it() {
        let [large, _] = models();
        let tiny = RandomModel { hidden_size: 32, layers: 1, ..RandomModel::default() };
        let tiny = facts_of_random(&tiny, large.vocab_size);
        let text = "[run]\nthreads = 2\n[models]\nbase = 'base'\nlarge = 'large'\n[[stage]]\nname = 'a'\n\
                    kind = 'rl'\nmodel = 'base'\nteacher = 'large'\nprompts = 'SELECT 1'\n\
                    sampling = { max_tokens = 16 }\nobjective = { preset = 'distill' }";
        let text = crate::pipeline::Text { path: "p.toml", text, sets: &[] };
        let pipeline = crate::pipeline::parse(text).unwrap();
        let bytes = |teacher: Option<&ModelFacts>, name: &str| {
            let others = Others { guide: teacher, ..Others::default() };
            let found = predict(&pipeline, &pipeline.stages[0], Some(&tiny), &others).host;
            found.parts.iter().filter(|part| part.name == name).map(|part| part.bytes).sum::<u64>()
        };
        assert_eq!(bytes(Some(&large), "teacher"), 8 * large.param_count);
        assert_eq!(bytes(None, "teacher"), 0);
        // It is larger than all that the tiny one needs: the phase in which it is asked is the largest.
        let floats = 6 * 576 + 2 * (576 + 192) + 3 * 1536 + 9;
        let tokens = u64::from(longest(&pipeline.stages[0].kind, &tiny)).max(4096);
        assert_eq!(bytes(Some(&large), "activations"), 4 * tokens * floats);
        // Where its student is the larger one, training is.
        let others = Others { guide: Some(&tiny), ..Others::default() };
        let found = predict(&pipeline, &pipeline.stages[0], Some(&large), &others).host;
        assert!(found.parts.iter().any(|part| part.name == "teacher's predictions"), "{found:?}");
    }
}
