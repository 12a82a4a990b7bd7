//! What Prometheus reads: names, their help, and the text.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use aha_flow::machine;

use crate::api::App;
use crate::child;
use crate::status::Status;

/// The kind of a metric, as Prometheus calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// It goes up and down.
    Gauge,
    /// It grows, from 0 at the daemon's start.
    Counter,
}

/// Every metric: its name, its kind, and what it says. Dashboards and alerts are held against this list.
pub const REFERENCE: [(&str, Type, &str); 19] = [
    ("aha_daemon_info", Type::Gauge, "Always 1; its label says the version."),
    ("aha_runs", Type::Gauge, "Runs of the queue, by their state."),
    ("aha_run_step", Type::Gauge, "Steps done of the stage that a running run is at."),
    ("aha_run_steps", Type::Gauge, "Steps in all of the stage that a running run is at."),
    ("aha_run_metric", Type::Gauge, "The newest measures of a running run, by their names."),
    ("aha_run_resident_bytes", Type::Gauge, "Resident memory of a running run's process."),
    ("aha_run_predicted_bytes", Type::Gauge, "Memory that a running run is predicted to want."),
    ("aha_run_failures", Type::Gauge, "Processes of a run in a row that ended early."),
    ("aha_run_waiting", Type::Gauge, "1 where a running run waits for room on the disk."),
    ("aha_memory_budget_bytes", Type::Gauge, "Memory of all runs and models."),
    ("aha_memory_reserved_bytes", Type::Gauge, "Memory that runs or models have of it."),
    ("aha_memory_available_bytes", Type::Gauge, "Memory that the machine has free for more."),
    ("aha_disk_available_bytes", Type::Gauge, "Room on the home folder's file system."),
    ("aha_models_loaded", Type::Gauge, "Models that are loaded."),
    ("aha_event_streams", Type::Gauge, "Connections that watch events."),
    ("aha_http_requests_total", Type::Counter, "Requests that were answered, by status."),
    ("aha_queries_total", Type::Counter, "SQL queries, by how they ended."),
    ("aha_completion_tokens_total", Type::Counter, "Tokens that loaded models have written."),
    ("aha_daemon_resident_bytes", Type::Gauge, "Resident memory of the daemon's process."),
];

/// The metrics in Prometheus' text format. Reads `/proc`.
pub fn text(app: &App) -> String {
    let mut text = String::new();
    for (name, kind, help) in REFERENCE {
        let kind = if kind == Type::Gauge { "gauge" } else { "counter" };
        let samples = samples(app, name);
        if !samples.is_empty() {
            // Writing to a string never fails.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        }
        for (labels, value) in samples {
            let _ = writeln!(text, "{name}{} {value}", shown(&labels));
        }
    }
    text
}

type Samples = Vec<(Vec<(&'static str, String)>, f64)>;

fn one(value: f64) -> Samples {
    vec![(Vec::new(), value)]
}

fn samples(app: &App, name: &str) -> Samples {
    match name {
        "aha_daemon_info" => vec![(vec![("version", env!("CARGO_PKG_VERSION").to_owned())], 1.0)],
        "aha_runs" => {
            let runs = app.board.runs();
            let count = |status| runs.iter().filter(|run| run.status == status).count() as f64;
            let of = |status: Status| (vec![("status", status.word().to_owned())], count(status));
            Status::ALL.map(of).into()
        }
        "aha_memory_budget_bytes" => one(app.budget.total_bytes() as f64),
        "aha_memory_reserved_bytes" => {
            let by = |who: &str, bytes: u64| (vec![("by", who.to_owned())], bytes as f64);
            vec![
                by("runs", app.budget.runs().memory_bytes),
                by("models", app.budget.models_bytes()),
            ]
        }
        "aha_memory_available_bytes" => {
            machine::memory().available_bytes.map(|bytes| one(bytes as f64)).unwrap_or_default()
        }
        "aha_disk_available_bytes" => {
            machine::room_bytes(app.home.root()).map(|bytes| one(bytes as f64)).unwrap_or_default()
        }
        "aha_models_loaded" => one(app.hub.loaded() as f64),
        "aha_event_streams" => one(app.events.watchers() as f64),
        "aha_http_requests_total" => {
            let answered = app.counts.answered.iter().enumerate();
            let of = |(idx, count): (usize, &std::sync::atomic::AtomicU64)| {
                (vec![("status", format!("{}xx", idx + 1))], count.load(Ordering::Relaxed) as f64)
            };
            answered.map(of).collect()
        }
        "aha_queries_total" => {
            let counts =
                [("answered", &app.query_counts.answered), ("failed", &app.query_counts.failed)];
            let of = |(how, count): (&str, &std::sync::atomic::AtomicU64)| {
                (vec![("outcome", how.to_owned())], count.load(Ordering::Relaxed) as f64)
            };
            counts.map(of).into()
        }
        "aha_completion_tokens_total" => one(app.hub.tokens_total() as f64),
        "aha_daemon_resident_bytes" => {
            child::resident_bytes(std::process::id()).map(|b| one(b as f64)).unwrap_or_default()
        }
        _ => of_runs(app, name),
    }
}

/// Metrics that each running run has.
fn of_runs(app: &App, name: &str) -> Samples {
    let mut samples = Samples::new();
    for record in app.board.runs().iter().filter(|record| record.status.has_process()) {
        let labels = vec![("run", record.id.to_string()), ("name", record.name.clone())];
        let staged = |stage: &str| {
            let mut labels = labels.clone();
            labels.push(("stage", stage.to_owned()));
            labels
        };
        let current = record.progress.current();
        match name {
            "aha_run_step" => samples.extend(current.map(|s| (staged(&s.name), s.step as f64))),
            "aha_run_steps" => samples.extend(current.map(|s| (staged(&s.name), s.steps as f64))),
            "aha_run_metric" => {
                let stage = record.progress.stage.clone().unwrap_or_default();
                samples.extend(record.progress.metrics.iter().map(|(metric, value)| {
                    let mut labels = staged(&stage);
                    labels.push(("metric", metric.clone()));
                    (labels, *value)
                }));
            }
            "aha_run_resident_bytes" => {
                let bytes = record.process.and_then(|process| child::resident_bytes(process.pid));
                samples.extend(bytes.map(|bytes| (labels, bytes as f64)));
            }
            "aha_run_predicted_bytes" => samples.push((labels, record.memory_bytes as f64)),
            "aha_run_waiting" => {
                samples.push((labels, f64::from(u8::from(record.progress.is_waiting))));
            }
            "aha_run_failures" => samples.push((labels, f64::from(record.failures))),
            _ => {}
        }
    }
    samples
}

/// Labels as the format has them, with what would end one early escaped.
fn shown(labels: &[(&'static str, String)]) -> String {
    if labels.is_empty() {
        return String::new();
    }
    let escaped = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let labels: Vec<String> =
        labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    format!("{{{}}}", labels.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_end_where_they_should() {
        let labels = [("a", "x\"y\\z\n".to_owned()), ("b", "1".to_owned())];
        assert_eq!(shown(&labels), r#"{a="x\"y\\z\n",b="1"}"#);
        assert_eq!(shown(&[]), "");
    }

    #[test]
    fn names_follow_prometheus_rules() {
        for (name, kind, help) in REFERENCE {
            assert_eq!(kind == Type::Counter, name.ends_with("_total"), "{name}");
            assert!(name.starts_with("aha_") && help.ends_with('.'), "{name}");
        }
    }
}
