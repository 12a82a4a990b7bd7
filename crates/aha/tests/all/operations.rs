//! What `ops/` has for operators: alerts, a dashboard and a runbook, held against the daemon's metrics by their names.

use std::collections::BTreeSet;
use std::path::Path;

use aha_daemon::metrics::REFERENCE;
use serde_json::Value;

/// A file of `ops/`.
pub fn read(name: &str) -> String {
    let root =
        Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo")).join("../..");
    fs_err::read_to_string(root.join("ops").join(name)).unwrap()
}

/// The metrics that a text names.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("aha_")).map(str::to_owned).collect()
}

fn alerts() -> Vec<String> {
    let text = read("prometheus-alerts.yml");
    let names = text.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    names.map(str::to_owned).collect()
}

/// Every expression of the dashboard, in panels and variables.
fn expressions(value: &Value, found: &mut String) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value.as_str() {
                    Some(text) if key == "expr" || key == "query" => *found += &format!("{text}\n"),
                    _ => expressions(value, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| expressions(value, found)),
        _ => {}
    }
}

#[test]
fn alerts_and_dashboard_name_every_metric_of_the_daemon_and_no_other() {
    let dashboard: Value = serde_json::from_str(&read("grafana-dashboard.json")).unwrap();
    let mut asked = String::new();
    expressions(&dashboard, &mut asked);
    let rules = read("prometheus-alerts.yml");
    let rules: String = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("expr: "))
        .fold(String::new(), |all, line| all + line + "\n");
    assert_eq!(rules.lines().count(), alerts().len());
    let known: BTreeSet<String> = REFERENCE.iter().map(|(name, ..)| (*name).to_owned()).collect();
    let named: BTreeSet<String> = metrics(&asked).union(&metrics(&rules)).cloned().collect();
    assert_eq!(named.difference(&known).collect::<Vec<_>>(), [""; 0], "there is no such metric");
    assert_eq!(known.difference(&named).collect::<Vec<_>>(), [""; 0], "nothing shows these");
}

#[test]
fn every_alert_has_its_section_in_the_runbook_and_says_so() {
    let (text, runbook) = (read("prometheus-alerts.yml"), read("runbook.md"));
    let sections: Vec<&str> = runbook
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .filter(|name| name.starts_with("Aha"))
        .collect();
    assert_eq!(alerts(), sections);
    for alert in alerts() {
        let link = format!("runbook: ops/runbook.md#{}\n", alert.to_lowercase());
        assert!(text.contains(&link), "{alert} has no `{link}`");
    }
}

#[test]
fn the_service_and_the_container_start_the_daemon_as_its_command_line_has_it() {
    let help = crate::support::aha(Path::new("."), &["daemon", "--help"]).stdout;
    let service = read("aha.service");
    let start = service.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let container = read("Containerfile").replace(['"', ',', '[', ']'], " ");
    let container = container.lines().find_map(|line| line.strip_prefix("CMD ")).unwrap();
    for words in [start, container] {
        let flags: Vec<&str> =
            words.split_whitespace().filter(|word| word.starts_with("--")).collect();
        assert!(flags.len() >= 3, "{words}");
        for flag in flags {
            assert!(help.contains(&format!("{flag} ")), "{flag} is no flag of `aha daemon`");
        }
    }
    for setting in
        ["ProtectSystem=strict", "NoNewPrivileges=yes", "KillMode=mixed", "OOMPolicy=continue"]
    {
        assert!(service.lines().any(|line| line == setting), "{setting}");
    }
}
