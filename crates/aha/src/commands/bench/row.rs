//! Figures of one configuration, as JSON and as a table.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Kind;
use super::limits::Limits;
use super::profile::{self, OpTime};
use crate::text;

/// What was found out about one configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// What was measured.
    pub kind: Kind,
    /// The configuration.
    pub name: String,
    /// Threads that computed.
    pub threads: usize,
    /// Why there are no figures, or fewer than asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Figures by name, units last.
    pub figures: Map<String, Value>,
    /// Time by op, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<profile::Times>,
}

impl Row {
    /// A row without figures.
    pub fn new(kind: Kind, name: impl Into<String>, threads: usize) -> Row {
        let (name, figures) = (name.into(), Map::new());
        Row { kind, name, threads, problem: None, figures, profile: None }
    }

    /// Adds a figure. One that isn't finite is left out: nothing was measured.
    pub fn add(&mut self, name: &str, value: f64) {
        if value.is_finite() {
            self.figures.insert(name.to_owned(), json!(value));
        }
    }

    /// A figure that is there.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.figures.get(name).and_then(Value::as_f64)
    }

    /// Adds the time of runs: their median, the best and the worst.
    pub fn add_seconds(&mut self, seconds: &[f64]) {
        let mut sorted = seconds.to_vec();
        sorted.sort_by(f64::total_cmp);
        self.figures.insert("runs".to_owned(), json!(sorted.len()));
        self.add("seconds_median", median(&sorted));
        self.add("seconds_min", sorted.first().copied().unwrap_or(f64::NAN));
        self.add("seconds_max", sorted.last().copied().unwrap_or(f64::NAN));
    }

    /// Adds how much of what the machine allows was reached.
    pub fn judge(&mut self, limits: &Limits) {
        let share = |rate: Option<f64>, limit: f64| rate.map(|rate| 1e9 * rate / limit);
        if let Some(share) = share(self.get("gflop_per_second"), limits.flop_per_second) {
            self.add("peak_share", share);
        }
        let read = self.get("weights_gb_per_second");
        if let Some(share) = share(read, limits.read_bytes_per_second) {
            self.add("read_share", share);
        }
        let all = self.get("read_gb_per_second").filter(|_| self.kind == Kind::Decode);
        if let Some(share) = share(all, limits.read_bytes_per_second) {
            self.add("read_share_with_cache", share);
        }
        if let Some(times) = &mut self.profile {
            times.judge(limits);
        }
    }
}

/// The middle of sorted numbers.
fn median(sorted: &[f64]) -> f64 {
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => (sorted[len / 2 - 1] + sorted[len / 2]) / 2.0,
    }
}

/// The median of numbers.
pub fn median_of(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    median(&values)
}

/// A table of the rows of one kind, and one per profile.
pub fn tables(rows: &[Row]) -> String {
    let Some(first) = rows.first() else { return String::new() };
    let mut names: Vec<&str> = Vec::new();
    for name in rows.iter().flat_map(|row| row.figures.keys()) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let titles = names.iter().map(|name| name.replace('_', " "));
    let head: Vec<String> =
        [first.kind.name().to_owned(), "threads".to_owned()].into_iter().chain(titles).collect();
    let body = rows.iter().map(|row| {
        let figures =
            names.iter().map(|name| row.get(name).map_or(String::new(), |x| shown(name, x)));
        [row.name.clone(), row.threads.to_string()].into_iter().chain(figures).collect()
    });
    let mut out = table(&head, &body.collect::<Vec<_>>());
    for row in rows {
        if let Some(problem) = &row.problem {
            out.push_str(&text::lines(&format!("{}: {problem}\n", row.name)));
        }
    }
    out.push('\n');
    for row in rows {
        if let Some(times) = &row.profile {
            out.push_str(&format!("{} {}, by op:\n\n", row.kind.name(), row.name));
            out.push_str(&table(&OpTime::HEAD.map(str::to_owned), &times.cells()));
            out.push('\n');
        }
    }
    out
}

/// A figure as its unit, the last word of its name, asks for.
fn shown(name: &str, value: f64) -> String {
    if name.ends_with("_share") {
        return format!("{:.0} %", 100.0 * value);
    }
    if name.ends_with("_bytes") {
        return text::size(value as u64);
    }
    if name == "runs" { format!("{value}") } else { text::measure(value) }
}

/// A table in Markdown, whose columns are as wide as they must be.
fn table(head: &[String], rows: &[Vec<String>]) -> String {
    let width = |at: usize| {
        let cells = rows.iter().map(|row| row[at].chars().count());
        cells.chain([head[at].chars().count(), 4]).max().unwrap_or(4)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &[String]| {
        let cells = cells.iter().zip(&widths).enumerate().map(|(at, (cell, &width))| match at {
            0 => format!(" {cell:<width$} |"),
            _ => format!(" {cell:>width$} |"),
        });
        format!("|{}\n", cells.collect::<String>())
    };
    let rule = widths.iter().enumerate().map(|(at, &width)| match at {
        0 => format!(" {} |", "-".repeat(width)),
        _ => format!(" {}: |", "-".repeat(width - 1)),
    });
    let rule = format!("|{}\n", rule.collect::<String>());
    line(head) + &rule + &rows.iter().map(|row| line(row)).collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_column_for_each_figure_that_some_row_has() {
        let mut rows = vec![Row::new(Kind::Train, "8x256", 2), Row::new(Kind::Train, "4x512", 2)];
        rows[0].add("tokens_per_second", 160.0);
        rows[0].add("peak_share", 0.654);
        rows[1].add("peak_rss_bytes", 3e9);
        rows[1].add("seconds_median", f64::NAN);
        rows[1].problem = Some("took too long".to_owned());
        let expected = "\
| train | threads | tokens per second | peak share | peak rss bytes |
| ----- | ------: | ----------------: | ---------: | -------------: |
| 8x256 |       2 |               160 |       65 % |                |
| 4x512 |       2 |                   |            |        2.8 GiB |
4x512: took too long

";
        assert_eq!(tables(&rows), expected);
    }

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        assert_eq!(median_of(vec![4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median_of(vec![9.0, 1.0, 2.0]), 2.0);
        assert!(median_of(Vec::new()).is_nan());
    }

    #[test]
    fn shares_are_of_what_the_machine_reached() {
        let limits = Limits { flop_per_second: 2e11, read_bytes_per_second: 2e10 };
        let mut row = Row::new(Kind::Decode, "x", 1);
        row.add("gflop_per_second", 50.0);
        row.add("weights_gb_per_second", 15.0);
        row.judge(&limits);
        assert_eq!((row.get("peak_share"), row.get("read_share")), (Some(0.25), Some(0.75)));
    }
}
