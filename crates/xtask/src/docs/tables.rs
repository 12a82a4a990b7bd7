//! The page of what can be queried: tables and columns, metrics, SQL functions.

use aha_data::curation;
use aha_flow::metrics;
use aha_rollout::schema;
use anyhow::Result;
use arrow::datatypes::{DataType, SchemaRef};

use super::NOTE;
use super::markdown::{paragraph, section_link, table};

const INTRODUCTION: &str = "\
A run directory has its tables as Parquet files: `tables/NAME/*.parquet`, and `metrics/*.parquet`. `aha query` and \
every query of a pipeline see them by name; DuckDB, Polars and pandas read the files. Every column carries its doc \
in the files too. Two runs of one pipeline on one version differ in wall-clock time and in metrics of it, and in \
nothing else.";

const FUNCTIONS: &str = "\
Queries are in DataFusion's SQL, with its functions and these. Arguments are text of any kind; where one is null, so \
is the answer, but for `grade`.";

const CALLS: &str = "\
These stand after FROM, give the rows of a query in parentheses, and add two columns to each. Arguments with `=>` may \
be left out; a number that is given here is the default. [Curation](curation.md) shows them at work.";

/// The page.
pub fn page() -> Result<String> {
    // A name that stands for any; names have small letters.
    let rollouts = schema::rollouts(&["name".to_owned()])?;
    let tables: [(&str, &str, SchemaRef); 6] = [
        (
            "rollouts",
            "Every completion that the run has sampled, one row each. The table of an `rl` or `sample` \
             stage, and `NAME_MODEL` of an `eval` stage, are their part of it.",
            rollouts,
        ),
        ("metrics", "One row per step and metric of the stages that train.", schema::metrics()),
        (
            "evals",
            "One row per evaluation of a model. The table of an `eval` stage is its part of it.",
            schema::evals(),
        ),
        (
            "Examples of an sft stage",
            "What the stage of that name trains on, one row per example.",
            schema::sft_examples(),
        ),
        (
            "Pairs of a reward-model or dpo stage",
            "What the stage of that name trains on and is measured on, one row per pair.",
            schema::preferences(),
        ),
        (
            "NAME_set_aside",
            "Prompts that kept failing in the stage `NAME`, and that it went on without.",
            schema::set_aside(),
        ),
    ];
    let mut text = format!("# Tables and SQL functions\n\n{NOTE}\n\n{}", paragraph(INTRODUCTION));
    text.push_str("\n## Contents\n\n");
    for (name, ..) in &tables {
        text.push_str(&format!("- {}\n", section_link(name, name)));
        if *name == "metrics" {
            text.push_str("  - [The metrics](#the-metrics)\n");
        }
    }
    text.push_str("- [SQL functions](#sql-functions)\n- [Calls after FROM](#calls-after-from)\n");
    for (name, about, schema) in tables {
        text.push_str(&format!("\n## {name}\n\n{}\n{}", paragraph(about), columns(&schema)));
        if name == "metrics" {
            text.push_str(&format!("\n### The metrics\n\n{}", metrics_table()));
        }
    }
    text.push_str(&format!("\n## SQL functions\n\n{}\n{}", paragraph(FUNCTIONS), functions()));
    text.push_str(&format!("\n## Calls after FROM\n\n{}", paragraph(CALLS)));
    text.extend(curation::reference().iter().map(call));
    Ok(text)
}

fn call(about: &curation::TableFunction) -> String {
    let curation::TableFunction { name, arguments, doc, columns } = about;
    let rows = columns.map(|(column, kind, doc)| {
        [format!("`{column}`"), format!("{kind}, or null"), doc.to_owned()]
    });
    let columns = table(["column", "type", "what it holds"], rows);
    format!("\n### {name}\n\n`{name}({arguments})`\n\n{}\n{columns}", paragraph(doc))
}

fn columns(schema: &SchemaRef) -> String {
    let rows = schema.fields().iter().map(|field| {
        let doc = field.metadata().get(schema::DOC).map_or("", String::as_str);
        let name = field.name().replace("reward_name", "reward_NAME");
        let null = if field.is_nullable() { ", or null" } else { "" };
        let kind = format!("{}{null}", type_name(field.data_type()));
        [format!("`{name}`"), kind, doc.replace("`name`", "`NAME`")]
    });
    table(["column", "type", "what it holds"], rows)
}

fn type_name(kind: &DataType) -> String {
    match kind {
        DataType::Utf8 => "text".to_owned(),
        DataType::Int64 => "whole number".to_owned(),
        DataType::Float64 => "number".to_owned(),
        DataType::Boolean => "boolean".to_owned(),
        DataType::Timestamp(..) => "wall-clock time".to_owned(),
        DataType::List(item) => format!("list of {}", item.data_type().to_string().to_lowercase()),
        other => other.to_string(),
    }
}

fn metrics_table() -> String {
    let rows = metrics::REFERENCE.map(|(name, doc)| [format!("`{name}`"), doc.to_owned()]);
    table(["name", "what it says"], rows)
}

fn functions() -> String {
    let rows = aha_data::functions::reference().into_iter().map(|function| {
        let call = format!("`{}({})`", function.name, function.arguments.join(", "));
        [call, type_name(&function.output), function.doc.to_owned()]
    });
    table(["function", "type", "what it gives"], rows)
}
