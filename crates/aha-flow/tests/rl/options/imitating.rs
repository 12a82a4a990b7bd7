//! Keys of `sft`, `reward-model` and `dpo`, of `[run]` and of `[models]`.

use super::{Case, Kind, error, measures, model, optimizer, table, wide};

pub(super) const TUNED: &str = r#"
[[stage]]
name = "tuned"
kind = "sft"
model = "blank"
data = "SELECT id, prompt, answer AS completion FROM problems WHERE id <> 'bad'"
epochs = 2
batch_size = 4
max_tokens = 64
optimizer = { lr = 1e-2, eps = 1e-3 }
"#;

/// Chosen completions of different lengths, and rejected ones.
pub(super) const PAIRS: &str =
    "SELECT id, prompt, answer AS chosen, prompt AS rejected FROM problems WHERE id <> 'bad'";
const OTHER_PAIRS: &str = "SELECT id, prompt, answer AS chosen, prompt AS rejected FROM problems WHERE id NOT IN ('bad', 'p1')";
const HELD_OUT: &str =
    "SELECT id, prompt, answer AS chosen, prompt AS rejected FROM problems WHERE id = 'p3'";

/// A conversation of two turns, of which the first isn't to be learned.
const CHATS: &str = r#"data=SELECT '[{"role":"user","content":"1+1="},{"role":"assistant","content":"2"},{"role":"user","content":"2+1="},{"role":"assistant","content":"3","train":false}]' AS messages FROM problems"#;

/// Texts with pairs of letters that are worth a token.
const WORDS: &str =
    "SELECT 'banana bandana ' || prompt || answer AS text FROM problems WHERE id <> 'bad'";

const LORA: &str = "lora={ rank = 4, alpha = 8 }";

/// The optimizer's keys in a stage that has no other.
const OPTIMIZER: [&str; 8] = [
    "optimizer.lr",
    "optimizer.betas",
    "optimizer.eps",
    "optimizer.weight_decay",
    "optimizer.schedule.kind",
    "optimizer.schedule.warmup_steps",
    "optimizer.schedule.min_lr",
    "grad_clip",
];

fn lora() -> Vec<Case> {
    vec![
        model("lora.rank", "3", &[LORA]),
        model("lora.alpha", "9", &[LORA]),
        model("lora.targets", "['q_proj']", &[LORA]),
        model("lora.rslora", "true", &[LORA]),
    ]
}

/// What the three kinds have in common. Some sequences have more tokens than `short`, and some haven't.
fn of_all(short: &'static str) -> Vec<Case> {
    let too_short = format!("max_tokens={short}");
    let cases = vec![
        model("model", "sage", &[]),
        model("template", "1{prompt}", &[]),
        model("template", "r1-zero", &wide(&["max_tokens=1000"])),
        error("chat template", "template", "chat", &[]),
        model("epochs", "3", &[]),
        model("max_steps", "2", &[]),
        model("batch_size", "3", &[]),
        model("max_tokens", short, &[]),
        error("expected at most", "overlong", "error", &[&too_short]),
        model("shuffle", "false", &[]),
    ];
    [cases, optimizer(&OPTIMIZER, &[])].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_of_sft_does_something() {
    let chats = wide(&["max_tokens=1000", "template=r1-zero", CHATS]);
    let cases = vec![
        model(
            "data",
            "SELECT id, prompt, answer AS completion FROM problems WHERE id NOT IN ('bad', 'p1')",
            &[],
        ),
        model("overlong", "truncate", &["max_tokens=6"]),
        model("loss_on", "all", &[]),
        model("loss_on", "last", &chats),
        model("loss_on", "flagged", &chats),
    ];
    let kind =
        Kind { name: "tuned", heading: "kind = \"sft\"", text: TUNED.to_owned(), left_out: &[] };
    kind.check([of_all("6"), lora(), cases].concat()).await;
}

fn pairs(kind: &str) -> String {
    TUNED
        .replace("\"sft\"", &format!("{kind:?}"))
        .replace("SELECT id, prompt, answer AS completion FROM problems WHERE id <> 'bad'", PAIRS)
}

fn of_pairs(held_out: &'static str) -> Vec<Case> {
    vec![
        model("data", OTHER_PAIRS, &[]),
        table("tuned", "held_out", HELD_OUT, &[]),
        measures("held_out", HELD_OUT, &[held_out]),
        model("held_out_share", "0.25", &[]),
        measures("held_out_every", "2", &["held_out_share=0.25"]),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_of_reward_model_does_something() {
    let kind = Kind {
        name: "tuned",
        heading: "kind = \"reward-model\"",
        text: pairs("reward-model"),
        left_out: &[],
    };
    let cases = vec![model("centering", "0.1", &[])];
    kind.check([of_all("9"), lora(), of_pairs(OTHER), cases].concat()).await;
}

/// Another pair to measure on.
const OTHER: &str = "held_out=SELECT id, prompt, answer AS chosen, prompt AS rejected FROM problems WHERE id = 'p7'";

#[tokio::test(flavor = "multi_thread")]
async fn every_key_of_dpo_does_something() {
    let kind = Kind { name: "tuned", heading: "kind = \"dpo\"", text: pairs("dpo"), left_out: &[] };
    let cases = vec![
        model("reference", "sage", &[]),
        model("loss", "ipo", &[]),
        model("loss", "hinge", &[]),
        model("beta", "0.5", &[]),
        model("label_smoothing", "0.2", &[]),
        model("length_normalised", "true", &[]),
        model("nll", "0.5", &[]),
    ];
    kind.check([of_all("9"), lora(), of_pairs(OTHER), cases].concat()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_of_run_that_is_not_neutral_does_something() {
    let kind = Kind {
        name: "tuned",
        heading: "[run]",
        text: TUNED.to_owned(),
        left_out: &[
            ("device=cpu", "it is the processor in either case"),
            ("device=cuda:N", "runs on an emulated device are in on_cuda.rs"),
            ("device=cuda:N,M", "runs on two emulated devices are in on_cuda.rs"),
            ("query_memory", "only the order changes of rows that a query leaves open"),
        ],
    };
    let cases = vec![
        model("seed", "6", &[]),
        model("dtype", "bf16", &[]),
        error("computes on the processor", "fp8", "true", &[]),
        model("kv_dtype", "bf16", &[]),
    ];
    kind.check(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_of_a_model_made_from_nothing_does_something() {
    let kind = Kind { name: "tuned", heading: "[models]", text: TUNED.to_owned(), left_out: &[] };
    let cases = vec![
        model("architecture", "qwen2", &[]),
        model("architecture", "qwen3", &[]),
        model("hidden_size", "48", &[]),
        model("intermediate_size", "32", &[]),
        model("layers", "2", &[]),
        model("heads", "4", &[]),
        model("kv_heads", "2", &[]),
        model("head_dim", "32", &[]),
        model("vocab_size", "40", &[]),
        model("max_position_embeddings", "128", &[]),
        model("tie_word_embeddings", "false", &[]),
        model("rope_theta", "1000.0", &[]),
        model("rms_norm_eps", "1e-3", &[]),
        model("init_std", "0.2", &[]),
        model("init_seed", "9", &[]),
        model("tokenizer.train", WORDS, &[]),
        model("tokenizer.vocab_size", "20", &[&format!("tokenizer.train={WORDS}")]),
        model("tokenizer.special_tokens", "['+1']", &[]),
        model(
            "tokenizer.alphabet",
            "seen",
            &["tokenizer.alphabet=bytes", "tokenizer.vocab_size=300"],
        ),
    ];
    kind.check(cases).await;
}
