//! The dashboard's files, and what it asks of the API.

use serde_json::{Value, json};

use super::Daemon;
use crate::support::write_pipeline;

fn ask(daemon: &Daemon, path: &str, header: &str) -> String {
    daemon.raw(&format!("GET {path} HTTP/1.1\r\nhost: HERE\r\n{header}connection: close\r\n\r\n"))
}

#[test]
fn the_dashboards_files_are_for_everybody_and_what_it_shows_is_not() {
    let temp = write_pipeline(3);
    let daemon = Daemon::start(temp.path(), &["--require-token"]);
    let page = ask(&daemon, "/", "");
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("/assets/dashboard.js"), "{page}");
    assert!(page.contains("content-security-policy: default-src 'none'; script-src 'self'"));
    let script = ask(&daemon, "/assets/dashboard.js", "");
    assert!(script.starts_with("HTTP/1.1 200") && script.contains("text/javascript"));
    let link = ask(&daemon, "/", "sec-fetch-site: cross-site\r\n");
    assert!(link.starts_with("HTTP/1.1 200"), "a link of another page leads here: {link}");
    for (path, header, status) in [
        ("/api/v1/runs", "", "401"),
        ("/api/v1/usage", "sec-fetch-site: cross-site\r\n", "403"),
        ("/assets/nothing.js", "", "404"),
        ("/assets/..%2f..%2fhome%2ftoken", "", "404"),
        ("/assets/../home/token", "", "404"),
    ] {
        let answer = ask(&daemon, path, header);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {answer}");
    }
    let foreign = daemon.raw("GET / HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n");
    assert!(foreign.starts_with("HTTP/1.1 403"), "{foreign}");
}

#[test]
fn a_run_has_lines_a_graph_and_what_it_took() {
    let temp = write_pipeline(3);
    let daemon = Daemon::start(temp.path(), &[]);
    let id = daemon.submit(&["--wait"]);
    let stages = daemon.run(id)["progress"]["stages"].clone();
    let reads = |idx: usize| &stages[idx]["reads"];
    assert_eq!((reads(0), reads(1)), (&json!([]), &json!(["cold"])), "{stages}");

    let curves = |query: &str| {
        let (status, found) = daemon.get(&format!("/api/v1/runs/{id}/curves{query}"));
        assert_eq!(status, 200, "{found}");
        found["curves"].as_array().unwrap().clone()
    };
    let reward = curves("?stage=zero&name=reward");
    assert_eq!((reward.len(), &reward[0]["steps"]), (1, &json!([1, 2, 3])), "{reward:?}");
    assert!(reward[0]["doc"].as_str().unwrap().contains("mean reward"), "{reward:?}");
    let thin = curves("?points=1");
    assert!(thin.iter().all(|line| line["values"].as_array().unwrap().len() == 1), "{thin:?}");
    assert_eq!(daemon.get(&format!("/api/v1/runs/{id}/curves?poins=1")).0, 400);
    assert_eq!(daemon.get("/api/v1/runs/77/curves").0, 404);

    let (status, usage) = daemon.get(&format!("/api/v1/runs/{id}/usage"));
    assert!(status == 200 && usage["samples"].is_array(), "{usage}");
    let (_, all) = daemon.get("/api/v1/usage");
    assert!(all["budget_bytes"].as_u64() > Some(0) && all["runs_bytes"] == 0, "{all}");
}

#[test]
fn a_pipeline_is_checked_without_being_queued_and_answers_have_types() {
    let temp = write_pipeline(3);
    let daemon = Daemon::start(temp.path(), &[]);
    let text = std::fs::read_to_string(temp.path().join("tiny.toml")).unwrap();
    let (status, good) = daemon.post("/api/v1/check", &json!({ "pipeline": text }));
    assert_eq!(status, 200, "{good}");
    assert!(good["memory_bytes"].as_u64() > Some(0) && good["stages"][1]["kind"] == "rl", "{good}");
    let bad = text.replace("epochs", "epoch");
    let (status, refused) = daemon.post("/api/v1/check", &json!({ "pipeline": bad }));
    assert_eq!(status, 400, "{refused}");
    let line = bad.lines().position(|line| line.contains("epoch")).unwrap() + 1;
    assert_eq!(refused["problems"][0]["line"], line, "{refused}");
    assert_eq!(daemon.get("/api/v1/runs").1, json!({ "runs": [] }));

    let id = daemon.submit(&["--wait"]);
    let sql = "SELECT count(*) AS n, 'x' AS word FROM zero WHERE step > 99";
    let query = json!({ "sql": sql, "format": "typed_json" });
    let (_, answer) = daemon.post(&format!("/api/v1/runs/{id}/query"), &query);
    let columns = json!([{ "name": "n", "type": "Int64" }, { "name": "word", "type": "Utf8" }]);
    assert_eq!(answer, json!({ "columns": columns, "rows": [{ "n": 0, "word": "x" }] }));
    let none = json!({ "sql": "SELECT step FROM zero LIMIT 0", "format": "typed_json" });
    let (_, answer): (u16, Value) = daemon.post(&format!("/api/v1/runs/{id}/query"), &none);
    assert_eq!(answer["rows"], json!([]), "{answer}");
    assert_eq!(answer["columns"][0]["name"], "step");
}
