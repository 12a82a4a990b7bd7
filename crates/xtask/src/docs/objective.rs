//! The page of GRPO: its keys, the presets, and the formula of each.

use aha_flow::pipeline::reference;
use aha_learn::objective::formula;
use aha_learn::preset::Preset;
use anyhow::{Context, Result};
use serde_json::{Map, Value};

use super::NOTE;
use super::foreign;
use super::markdown::{paragraph, section_link, table};
use super::source::{Source, plain};

const INTRODUCTION: &str = "\
The key `objective` of a stage of kind `rl` says what is optimised. \"GRPO\" is several functions out there, which \
differ in constants: here each of them is a key. What is absent comes from the preset, which is `deepseek-r1` \
where none is named; `objective = { preset = \"dapo\", kl = 0.001 }` is DAPO with a KL term. `aha check` prints \
the formula that will run.";

const SYMBOLS: &str = "\
In the formulas `r_i` is the reward of completion `i`, `mean_g` and `std_g` are over its group, `logp_t`, `old_t` \
and `ref_t` are the log-probs of token `t` under the policy, the weights that sampled it and the reference model, \
and `|o_i|` is the number of tokens of completion `i`.";

/// The longest completion in the formulas: it shows where a preset divides by it.
const COMPLETION_LEN_TOKENS_MAX: u32 = 256;

/// The page.
pub fn page() -> Result<String> {
    let source = Source::read(
        "aha-learn",
        &["objective/file.rs", "objective.rs", "advantage.rs", "preset.rs"],
    )?;
    let keys = source.item("ObjectiveFile")?;
    let tables = reference();
    let declared = tables.iter().flat_map(|table| &table.keys).find(|key| key.name == "objective");
    let declared = &declared.context("no stage has an objective")?.keys;
    let known: Vec<String> = declared.iter().map(|key| key.name.clone()).collect();
    foreign::ensure_same(&keys, &known)?;

    let mut text = format!("# The objective\n\n{NOTE}\n\n{}", paragraph(INTRODUCTION));
    text.push_str("\n## Contents\n\n- [Keys](#keys)\n- [Presets](#presets)\n");
    for preset in Preset::ALL {
        text.push_str(&format!("  - {}\n", section_link(preset.name(), preset.name())));
    }
    text.push_str("\n## Keys\n\n");
    text.push_str(&foreign::keys_table(&keys, &source)?);
    text.push_str(
        "\n## Presets\n\nWhat each sets; `clip` is short for `clip_low` and `clip_high`.\n\n",
    );
    text.push_str(&presets()?);
    text.push('\n');
    text.push_str(&paragraph(SYMBOLS));
    let docs = source.item("Preset")?.members;
    for (preset, member) in Preset::ALL.into_iter().zip(docs) {
        text.push_str(&format!("\n### {}\n", preset.name()));
        for part in member.doc.split(String::is_empty) {
            text.push('\n');
            text.push_str(&paragraph(&plain(part)));
        }
        let formula = formula(&preset.objective(COMPLETION_LEN_TOKENS_MAX));
        text.push_str(&format!("\n```text\n{formula}```\n"));
    }
    Ok(text)
}

/// A row for each key, a column for each preset.
fn presets() -> Result<String> {
    let mut columns: Vec<Map<String, Value>> = Vec::new();
    for preset in Preset::ALL {
        let value = serde_json::to_value(preset.objective(COMPLETION_LEN_TOKENS_MAX))?;
        columns.push(value.as_object().context("an objective is a table")?.clone());
    }
    let mut keys: Vec<&String> = Vec::new();
    for key in columns.iter().flat_map(Map::keys) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let cell = |key: &str, column: &Map<String, Value>| match column.get(key) {
        None | Some(Value::Null) => "–".to_owned(),
        Some(_) if key == "aggregation_length_tokens" => "`sampling.max_tokens`".to_owned(),
        Some(value) => format!("`{value}`"),
    };
    const COLUMNS: usize = Preset::ALL.len() + 1;
    let row = |key: &String| {
        std::array::from_fn::<_, COLUMNS, _>(|at| match at.checked_sub(1) {
            None => format!("`{key}`"),
            Some(preset) => cell(key, &columns[preset]),
        })
    };
    let header: [&str; COLUMNS] =
        std::array::from_fn(|at| at.checked_sub(1).map_or("key", |at| Preset::ALL[at].name()));
    Ok(table(header, keys.into_iter().map(row)))
}
