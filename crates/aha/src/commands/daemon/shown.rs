//! Runs as people read them.

use std::time::Duration;

use serde_json::Value;

use crate::text;

/// A run in a list: one cell for each of [`HEAD`].
pub fn row(run: &Value) -> Vec<String> {
    let stage = run["progress"]["stage"].as_str().unwrap_or_default();
    vec![
        run["id"].to_string(),
        cell(&run["name"]),
        cell(&run["status"]),
        text::one_line(stage),
        step(run, stage),
        text::size(run["memory_bytes"].as_u64().unwrap_or(0)),
        run["submitted_at_us"].as_i64().map(age).unwrap_or_default(),
    ]
}

/// What the cells of a row are.
pub const HEAD: [&str; 7] = ["run", "name", "status", "stage", "step", "memory", "age"];

fn cell(value: &Value) -> String {
    text::one_line(value.as_str().unwrap_or_default())
}

/// How far a run's stage is.
pub fn step(run: &Value, stage: &str) -> String {
    let mut stages = run["progress"]["stages"].as_array().into_iter().flatten();
    let Some(found) = stages.find(|found| found["name"] == stage) else {
        return String::new();
    };
    match found["steps"].as_u64() {
        None | Some(0) => found["step"].to_string(),
        Some(steps) => format!("{}/{steps}", found["step"]),
    }
}

/// The time since a moment.
fn age(at_us: i64) -> String {
    let passed = aha_flow::clock::now_us().saturating_sub(at_us);
    text::duration(Duration::from_micros(u64::try_from(passed).unwrap_or(0)))
}

/// The measures of a run's newest step.
pub fn measures(run: &Value) -> String {
    let shown = ["reward", "accuracy", "completion_len_tokens", "kl", "loss", "tokens_per_second"];
    let metrics = &run["progress"]["metrics"];
    let each = shown
        .iter()
        .filter_map(|name| Some(format!("{name} {}", text::measure(metrics[*name].as_f64()?))));
    each.collect::<Vec<_>>().join(", ")
}

/// Rows below their heads, each column as wide as it must be.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells.zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        format!("{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    let mut text = line(&mut head.iter().copied());
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}

/// One run with all that is known of it.
pub fn whole(run: &Value) -> String {
    let mut lines =
        vec![format!("run {}: {}, {}", run["id"], cell(&run["name"]), cell(&run["status"]))];
    if let Some(message) = run["problem"]["message"].as_str() {
        lines.push(format!("problem: {}", text::one_line(message)));
    }
    if let Some(hint) = run["problem"]["hint"].as_str() {
        lines.push(format!("hint: {}", text::one_line(hint)));
    }
    lines.push(format!("directory: {}", cell(&run["run_dir"])));
    lines.push(format!("memory: {}", text::size(run["memory_bytes"].as_u64().unwrap_or(0))));
    for stage in run["progress"]["stages"].as_array().into_iter().flatten() {
        let name = stage["name"].as_str().unwrap_or_default();
        let is_current = run["progress"]["stage"] == name;
        let state = match (stage["is_done"].as_bool(), is_current) {
            (Some(true), _) => "done".to_owned(),
            (_, true) => format!("step {}", step(run, name)),
            _ => "to come".to_owned(),
        };
        lines.push(format!("stage {} ({}): {state}", text::one_line(name), cell(&stage["kind"])));
    }
    let measures = measures(run);
    lines.extend((!measures.is_empty()).then_some(measures));
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run() -> Value {
        json!({
            "id": 3, "name": "tiny\u{1b}", "status": "running", "memory_bytes": 1536,
            "submitted_at_us": aha_flow::clock::now_us(), "run_dir": "/h/runs/3",
            "problem": { "message": "died", "hint": "mend" },
            "progress": {
                "stage": "zero",
                "stages": [
                    { "name": "cold", "kind": "sft", "step": 4, "steps": 4, "is_done": true },
                    { "name": "zero", "kind": "rl", "step": 2, "steps": 9, "is_done": false },
                    { "name": "last", "kind": "query", "step": 0, "steps": 0, "is_done": false },
                ],
                "metrics": { "reward": 0.5, "other": 1.0 },
            },
        })
    }

    #[test]
    fn a_list_has_a_line_for_each_run() {
        let shown = table(&HEAD, &[row(&run())]);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[1].starts_with(r"3    tiny\u{1b}  running  zero   2/9   1.5 KiB"), "{shown}");
    }

    #[test]
    fn a_run_is_shown_with_its_stages_and_its_problem() {
        let shown = whole(&run());
        for said in [
            "problem: died",
            "hint: mend",
            "stage cold (sft): done",
            "stage zero (rl): step 2/9",
            "stage last (query): to come",
            "reward 0.500",
        ] {
            assert!(shown.contains(said), "{said}: {shown}");
        }
    }
}
