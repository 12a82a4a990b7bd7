use super::*;

#[test]
fn parameters_of_smollm2_are_counted_as_published() {
    let model = RandomModel {
        hidden_size: 576,
        intermediate_size: 1536,
        layers: 30,
        heads: 9,
        kv_heads: 3,
        ..RandomModel::default()
    };
    assert_eq!(facts_of_random(&model, 49_152).param_count, 134_515_008);
}

/// SmolLM2, and a model with a head of its own.
pub(super) fn models() -> [ModelFacts; 2] {
    let tied = RandomModel {
        hidden_size: 576,
        intermediate_size: 1536,
        layers: 30,
        heads: 9,
        kv_heads: 3,
        ..RandomModel::default()
    };
    let untied = RandomModel { tie_word_embeddings: false, ..tied.clone() };
    [tied, untied].map(|model| facts_of_random(&model, 49_152))
}

/// What the first stage of a pipeline needs of a part; 0 where its largest phase has no such part.
pub(super) fn part(name: &str, stage: &str, model: &ModelFacts) -> u64 {
    let text = format!(
        "[run]\nthreads = 2\nsequences_max = 100\nkv_cache = '4GiB'\n[models]\nbase = 'base'\n\
         [[stage]]\nname = 'a'\nmodel = 'base'\n{stage}"
    );
    let text = crate::pipeline::Text { path: "p.toml", text: &text, sets: &[] };
    let pipeline = crate::pipeline::parse(text).unwrap();
    let others =
        Others { critic: pipeline.stages[0].kind.critic().map(|_| model), ..Others::default() };
    let found = predict(&pipeline, &pipeline.stages[0], Some(model), &others).host;
    found.parts.iter().filter(|part| part.name == name).map(|part| part.bytes).sum()
}

const SFT: &str = "kind = 'sft'\ndata = 'SELECT 1'";
const SAMPLE: &str =
    "kind = 'sample'\nprompts = 'SELECT 1'\nn = 4\nsampling = { max_tokens = 1000 }";
const RL: &str = "kind = 'rl'\nprompts = 'SELECT 1'\nrewards = [{ kind = 'math' }]";

#[test]
fn a_tied_embedding_has_two_gradients_and_an_untied_one_is_not_packed() {
    let [tied, untied] = models();
    let embedding = 4 * 49_152 * 576;
    assert_eq!(part("gradients", SFT, &tied), 4 * tied.param_count + embedding);
    assert_eq!(part("gradients", SFT, &untied), 4 * untied.param_count);
    assert_eq!(part("packed weights", SFT, &tied), 4 * tied.param_count);
    assert_eq!(part("packed weights", SFT, &untied), 4 * untied.param_count - embedding);
}

#[test]
fn a_reward_model_has_a_vector_for_its_head_and_no_logits() {
    for model in models() {
        let body = 134_515_008;
        let trained = facts_of_reward_model(&model);
        assert_eq!((trained.param_count, trained.is_reward_model), (body + 576, true));
        // Trained on, it stays what it is.
        assert_eq!(facts_of_reward_model(&trained), trained);
        let stage = "kind = 'reward-model'\ndata = 'SELECT 1'";
        assert_eq!(part("optimizer", stage, &model), 8 * (body + 576));
        assert_eq!(part("logits", stage, &model), 0);
    }
}

#[test]
fn adapters_alone_have_gradients_and_moments_and_share_the_rest() {
    let [model, _] = models();
    let stage = |more: &str| format!("{RL}\nlora = {{ rank = 8{more} }}");
    // Inputs and outputs of q, k, v, o, gate, up and down.
    let sizes = 2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536);
    for (more, sizes) in [("", sizes), (", targets = ['q_proj', 'k_proj']", 1152 + 768)] {
        let count = 30 * 8 * sizes;
        let of = |name: &str| part(name, &stage(more), &model);
        assert_eq!(of("adapters"), 8 * count);
        assert_eq!(of("gradients"), 4 * count);
        assert_eq!(of("optimizer"), 8 * count);
        assert_eq!(of("reference"), 8 * count);
        assert_eq!(of("weights"), 4 * model.param_count);
        assert_eq!(of("packed weights"), 4 * model.param_count);
    }
    let sft = |lora: &str| part("activations", &format!("{SFT}\n{lora}"), &model);
    assert_eq!(sft("lora = { rank = 8 }") - sft(""), 4096 * 30 * 4 * 7 * 8);
}

#[test]
fn logits_are_those_of_a_chunk() {
    let [model, _] = models();
    assert_eq!(part("logits", SFT, &model), 4 * 49_152 * 192);
    let few = format!("{SFT}\nmicro_batch_tokens = 64\nmax_tokens = 64");
    assert_eq!(part("logits", &few, &model), 4 * 49_152 * 64);
    // Two threads draw.
    assert_eq!(part("logits", SAMPLE, &model), 4 * 49_152 * (85 + 2));
}

#[test]
fn completions_are_those_of_a_chunk_of_prompts() {
    let [model, _] = models();
    assert_eq!(part("rollouts", SAMPLE, &model), 64 * 4 * 1000 * 48);
    let [rollouts, rows] = [part("rollouts", RL, &model), 32 * 16];
    assert_eq!(rollouts, rows * 256 * 48);
}

#[test]
fn completions_of_an_endpoint_are_those_of_all_chunks_under_way() {
    let needs = |keys: &str, reward_models: &[&ModelFacts]| {
        let text = format!(
            "[run]\nquery_memory = '32MiB'\n[[stage]]\nname = 'a'\nkind = 'sample'\nprompts = 'SELECT 1'\n\
             n = 4\nsampling = {{ max_tokens = 4000 }}\nendpoint = {{ url = 'http://h', model = 'm'{keys} }}"
        );
        let text = crate::pipeline::Text { path: "p.toml", text: &text, sets: &[] };
        let pipeline = crate::pipeline::parse(text).unwrap();
        let others = Others { reward_models: reward_models.to_vec(), ..Others::default() };
        predict(&pipeline, &pipeline.stages[0], None, &others).host.total_bytes()
    };
    let chunk = 64 * 4 * 4000 * 48;
    assert_eq!(needs("", &[]), PROGRAM_BYTES + 2 * chunk);
    assert_eq!(needs(", parallel_max = 256", &[]), PROGRAM_BYTES + 3 * chunk);
    let [model, _] = models();
    assert!(needs("", &[&facts_of_reward_model(&model)]) > 8 * 134_515_008);
}

/// Beside models an endpoint is asked after them, with none in memory.
#[test]
fn an_evaluated_endpoint_takes_what_its_chunks_do() {
    let of = |model: &str, facts: Option<&ModelFacts>| {
        let text = format!(
            "[run]\nthreads = 2\n[models]\nbase = 'base'\n[[stage]]\nname = 'a'\nkind = 'eval'\n{model}\n\
             data = 'SELECT 1'\nk = 16\nmax_tokens = 30000\nendpoint = {{ url = 'http://h', model = 'm' }}"
        );
        let text = crate::pipeline::Text { path: "p.toml", text: &text, sets: &[] };
        let pipeline = crate::pipeline::parse(text).unwrap();
        predict(&pipeline, &pipeline.stages[0], facts, &Others::default()).host.total_bytes()
    };
    let asking = PROGRAM_BYTES + 2 * 64 * 16 * 30_000 * 48;
    assert_eq!(of("", None), asking);
    let tiny = facts_of_random(&RandomModel::default(), 100);
    assert_eq!(of("model = 'base'", Some(&tiny)), asking);
    let [large, _] = models();
    let wide = ModelFacts { param_count: 4 << 30, ..large };
    assert!(of("model = 'base'", Some(&wide)) > 8 * (4 << 30));
}

#[test]
fn a_cache_is_no_larger_than_its_sequences() {
    let [model, _] = models();
    assert_eq!(part("kv cache", SAMPLE, &model), 4 << 30);
    // 101 sequences of 33 pages of 16 positions.
    let short = ModelFacts { max_position_embeddings: 512, ..model };
    assert_eq!(part("kv cache", SAMPLE, &short), 101 * 33 * 16 * 2 * 4 * 30 * 192);
    // A step of 8 completions.
    let few = format!("{RL}\nprompts_per_step = 2\ngroup_size = 4");
    assert_eq!(part("kv cache", &few, &short), 9 * 33 * 16 * 2 * 4 * 30 * 192);
}

#[test]
fn a_group_has_one_prompt_and_no_sequence_is_cut() {
    let [model, _] = models();
    let short = ModelFacts { max_position_embeddings: 512, ..model };
    let of_tokens = |tokens: u64| 4 * tokens * (3 * 576 + 2 * 1536);
    let stage = |more: &str| format!("{RL}\nprompts_per_step = 2\ngroup_size = 4\n{more}");
    let backward = |more: &str| part("backward", &stage(more), &short);
    assert_eq!(backward("micro_batch_tokens = 4096"), of_tokens(2 * (256 + 4 * 256)));
    assert_eq!(backward("micro_batch_tokens = 1000"), of_tokens(1000));
    assert_eq!(backward("micro_batch_tokens = 300"), of_tokens(512));
    assert_eq!(backward("minibatches = 2"), of_tokens(256 + 4 * 256));
}

#[test]
fn int8_weights_are_beside_the_learner_s_and_in_place_of_others() {
    let [model, _] = models();
    // Outputs of a layer: queries, keys, values, the attention's, gate, up and down.
    let outputs = 30 * (576 + 2 * 192 + 576 + 2 * 1536 + 576) + 49_152;
    let bytes = 134_515_008 + 4 * outputs;
    let int8 = |kind: &str| format!("{kind}\nsampling = {{ weights = \"int8\" }}");
    assert_eq!(part("int8 weights", &int8(RL), &model), bytes);
    assert_eq!(part("packed weights", &int8(RL), &model), 4 * 134_515_008);
    let eval = "kind = 'eval'\ndata = 'SELECT 1'\nweights = 'int8'";
    assert_eq!(part("int8 weights", eval, &model), bytes);
    assert_eq!(part("packed weights", eval, &model), 0);
    assert_eq!(part("int8 weights", RL, &model), 0);
}

#[test]
fn a_sampler_that_runs_ahead_has_two_copies_and_samples_while_the_learner_trains() {
    let [tied, _] = models();
    let ahead = |k: u32| format!("{RL}\nmax_staleness = {k}");
    let copies = part("sampler's copies", &ahead(1), &tied);
    assert_eq!(copies, (8 + 4) * tied.param_count);
    let int8 = format!("{}\nsampling = {{ weights = 'int8' }}", ahead(1));
    let of_int8 = part("sampler's copies", &int8, &tied);
    assert!(8 * tied.param_count < of_int8 && of_int8 < 10 * tied.param_count, "{of_int8}");
    let lora = format!("{}\nlora = {{ rank = 8 }}", ahead(1));
    assert_eq!(part("sampler's copies", &lora, &tied), part("adapters", &lora, &tied) * 3 / 2);
    assert!(part("sampling", &ahead(1), &tied) > 0);
    assert_eq!(part("sampling", RL, &tied) + part("sampler's copies", RL, &tied), 0);
    let rollouts = |stage: &str| part("rollouts", stage, &tied);
    assert_eq!(rollouts(&ahead(3)), 4 * rollouts(RL));
}

#[test]
fn a_critic_is_a_second_model_that_is_trained() {
    let rows = 32 * 16 * 256;
    for model in models() {
        let ppo = format!("{RL}\nobjective = {{ preset = 'ppo' }}");
        let params = facts_of_reward_model(&model).param_count;
        let embedding = 49_152 * 576;
        // Weights, gradients and two moments; the embedding isn't multiplied with.
        let state = 16 * params + 4 * (params - embedding);
        assert_eq!(part("critic", &ppo, &model), state + 24 * rows);
        assert_eq!(part("critic", RL, &model), 0);
        assert_eq!(part("optimizer", &ppo, &model), 8 * model.param_count);
    }
}

/// The critic's pass is the larger one, and it has no adapters.
#[test]
fn a_critic_beside_adapters_has_none() {
    let [large, _] = models();
    let tiny = facts_of_random(&RandomModel::default(), 49_152);
    let activations = |lora: &str| {
        let text = format!(
            "[models]\nbase = 'base'\n[[stage]]\nname = 'a'\nmodel = 'base'\n{RL}\n\
             objective = {{ preset = 'ppo' }}\n{lora}"
        );
        let text = crate::pipeline::Text { path: "p.toml", text: &text, sets: &[] };
        let pipeline = crate::pipeline::parse(text).unwrap();
        let others = Others { critic: Some(&large), ..Others::default() };
        let found = predict(&pipeline, &pipeline.stages[0], Some(&tiny), &others).host;
        let part = found.parts.iter().find(|part| part.name == "activations");
        part.map(|part| part.bytes)
    };
    assert!(activations("").is_some());
    assert_eq!(activations("lora = { rank = 64 }"), activations(""));
}

#[test]
fn checkpointing_keeps_two_sums_per_layer() {
    let [model, _] = models();
    let sets = format!("{SFT}\nactivation_checkpointing = true");
    let block = 4 * 576 + 2 * (576 + 192) + 3 * 1536 + 9;
    let of_tokens = |floats: u64| 4 * 4096 * floats;
    assert_eq!(part("activations", SFT, &model), of_tokens(30 * block + 4 * 576));
    assert_eq!(part("activations", &sets, &model), of_tokens(2 * 30 * 576 + block + 4 * 576));
}

#[test]
fn an_exported_model_is_read_from_a_file() {
    let [model, _] = models();
    assert_eq!(part("file", "kind = 'export'", &model), 4 * model.param_count);
    let tiny = facts_of_random(&RandomModel::default(), 100);
    assert_eq!(part("queries", "kind = 'export'", &tiny), 256 << 20);
}

#[test]
fn sizes_are_shown_with_few_digits() {
    assert_eq!(shown(0), "0 B");
    assert_eq!(shown(96 << 20), "96 MiB");
    assert_eq!(shown(3 << 29), "1.5 GiB");
}
