//! What a daemon doesn't do, whoever asks.

use super::*;

/// The status of an answer.
fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_default()
}

#[test]
fn requests_of_other_sites_and_names_are_refused() {
    let temp = write_pipeline(1);
    let daemon = Daemon::start(temp.path(), &["--host", "train.lan"]);
    let list = |headers: &str| {
        daemon.raw(&format!("GET /api/v1/runs HTTP/1.1\r\n{headers}Connection: close\r\n\r\n"))
    };
    assert_eq!(status(&list("Host: HERE\r\n")), "200");
    assert_eq!(status(&list("Host: train.lan\r\n")), "200");
    assert_eq!(status(&list("Host: evil.example\r\n")), "403");
    assert_eq!(status(&list("")), "400");
    assert_eq!(status(&list("Host: HERE\r\nOrigin: http://HERE\r\n")), "200");
    assert_eq!(status(&list("Host: HERE\r\nOrigin: http://evil.example\r\n")), "403");
    assert_eq!(status(&list("Host: HERE\r\nOrigin: null\r\n")), "403");
    let allowed = list("Host: HERE\r\n").to_lowercase();
    assert!(!allowed.contains("access-control-allow"), "{allowed}");
    let body = r#"{"pipeline":""}"#;
    let post = |headers: &str| {
        daemon.raw(&format!(
            "POST /api/v1/runs HTTP/1.1\r\nHost: HERE\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        ))
    };
    let cross = post("Content-Type: application/json\r\nSec-Fetch-Site: cross-site\r\n");
    assert_eq!(status(&cross), "403");
    // What a form of another site could send without asking first.
    assert_eq!(status(&post("Content-Type: text/plain\r\n")), "400");
    let preflight = daemon.raw(
        "OPTIONS /api/v1/runs HTTP/1.1\r\nHost: HERE\r\nOrigin: http://evil.example\r\nConnection: close\r\n\r\n",
    );
    assert_eq!(status(&preflight), "403");
}

/// Model text can be in any answer: whatever it says, a browser is to run none of it.
#[test]
fn answers_are_nothing_that_a_browser_would_run_or_show_elsewhere() {
    let temp = write_pipeline(1);
    let daemon = Daemon::start(temp.path(), &[]);
    for (path, host) in [
        ("/api/v1/runs", "HERE"),
        ("/nowhere", "HERE"),
        ("/metrics", "HERE"),
        ("/", "evil.example"),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = daemon.raw(&request).to_lowercase();
        for header in [
            "x-content-type-options: nosniff",
            "content-security-policy: default-src 'none'",
            "frame-ancestors 'none'",
            "cross-origin-resource-policy: same-origin",
            "referrer-policy: no-referrer",
            "cache-control: no-store",
        ] {
            assert!(answer.contains(header), "{path}: {header}: {answer}");
        }
        assert!(!answer.contains("access-control-") && !answer.contains("text/html"), "{answer}");
    }
}

#[test]
fn requests_that_are_too_large_or_lead_elsewhere_are_refused() {
    let temp = write_pipeline(1);
    fs_err::write(temp.path().join("home-secret"), "secret").unwrap();
    let daemon = Daemon::start(temp.path(), &[]);
    daemon.aha(&["submit", "tiny.toml", "--wait"]);
    let large = "POST /api/v1/runs HTTP/1.1\r\nHost: HERE\r\nContent-Type: application/json\r\n\
                 Content-Length: 999999999\r\n\r\n{";
    assert_eq!(status(&daemon.raw(large)), "413");
    // Up to 4 MiB a pipeline is read, and then wrong for what it says.
    let long = json!({ "pipeline": format!("#{}\n", "x".repeat(3 << 20)) });
    let (code, answer) = daemon.post("/api/v1/runs", &long);
    assert!(code == 400 && answer["problems"].is_array(), "{code}: {answer}");
    let many = json!({ "model": "1/zero", "prompt": "1".repeat(1_000_000) });
    let (code, answer) = daemon.post("/v1/completions", &many);
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(code == 400 && message.contains("is at least"), "{code}: {answer}");
    for path in [
        "/api/v1/runs/1/models/zero/file?path=../../run.json",
        "/api/v1/runs/1/models/zero/file?path=%2e%2e%2f%2e%2e%2frun.json",
        "/api/v1/runs/1/models/zero/file?path=/etc/passwd",
        "/api/v1/runs/1/models/../file?path=run.json",
        "/api/v1/runs/1/models/%2e%2e/file?path=run.json",
        "/api/v1/runs/..%2f..%2fhome-secret",
        "/api/v1/runs/../../home-secret",
    ] {
        let answer =
            daemon.raw(&format!("GET {path} HTTP/1.1\r\nHost: HERE\r\nConnection: close\r\n\r\n"));
        assert_eq!(status(&answer), "404", "{path}: {answer}");
        assert!(!answer.contains("secret") || answer.contains("home-secret"), "{answer}");
    }
}

#[test]
fn queries_read_the_runs_tables_and_nothing_else_and_end() {
    let temp = write_pipeline(1);
    let daemon = Daemon::start(temp.path(), &["--query-seconds", "5"]);
    daemon.aha(&["submit", "tiny.toml", "--wait"]);
    let ask = |sql: &str| daemon.post("/api/v1/runs/1/query", &json!({ "sql": sql }));
    assert_eq!(ask("SELECT 1 AS a").0, 200);
    let out = temp.path().join("out.csv");
    let (out, data) = (out.display(), temp.path().join("problems.jsonl"));
    let data = data.display();
    for sql in [
        format!("COPY (SELECT 1) TO '{out}'"),
        format!("COPY zero TO '{out}' STORED AS CSV"),
        format!("CREATE EXTERNAL TABLE x STORED AS JSON LOCATION '{data}'"),
        "CREATE TABLE x AS SELECT 1".to_owned(),
        "INSERT INTO zero SELECT * FROM zero".to_owned(),
        "DROP TABLE zero".to_owned(),
        "SET datafusion.execution.batch_size = 1".to_owned(),
        format!("SELECT * FROM '{data}'"),
        format!("SELECT * FROM \"{data}\""),
        format!("SELECT * FROM read_json('{data}')"),
        "SELECT * FROM problems".to_owned(),
        "SELECT 1; SELECT 2".to_owned(),
        "SELEC 1".to_owned(),
        String::new(),
    ] {
        let (status, problem) = ask(&sql);
        assert_eq!(status, 400, "{sql}: {problem}");
        assert!(problem["detail"].is_string(), "{sql}: {problem}");
    }
    assert!(!temp.path().join("out.csv").exists());
    let endless =
        "SELECT count(*) AS n FROM generate_series(1, 1000000000000000000) WHERE value < 0";
    let (status, problem) = ask(endless);
    assert_eq!(status, 408, "{problem}");
    let many = "SELECT a.value, b.value AS b FROM generate_series(1, 1000000) a \
                CROSS JOIN generate_series(1, 1000000) b ORDER BY a.value + b.value";
    let (status, problem) = ask(many);
    assert!([400, 408].contains(&status), "{problem}");
    let (status, problem) =
        ask("SELECT repeat('x', 1000000000) || repeat('y', 1000000000) AS a FROM zero, zero b");
    assert!([400, 408].contains(&status), "{problem}");
    assert_eq!(daemon.get("/healthz").0, 200, "the daemon outlives its queries");
    assert_eq!(ask("SELECT 1 AS a").0, 200);
}

#[test]
fn pipelines_name_only_what_is_allowed() {
    let temp = write_pipeline(1);
    let text = fs_err::read_to_string(temp.path().join("tiny.toml")).unwrap();
    let inside = temp.path().join("inside");
    fs_err::create_dir(&inside).unwrap();
    fs_err::copy(temp.path().join("problems.jsonl"), inside.join("problems.jsonl")).unwrap();
    let daemon = Daemon::start(temp.path(), &["--allow", "inside"]);
    let submit = |text: &str, base_dir: &Path| {
        daemon.post("/api/v1/runs", &json!({ "pipeline": text, "base_dir": base_dir }))
    };
    let (status, problem) = submit(&text, temp.path());
    assert_eq!((status, problem["type"].as_str()), (403, Some("/problems/forbidden")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("table `problems`"), "{problem}");
    assert!(problem["hint"].as_str().unwrap().contains("--allow"), "{problem}");
    for reward in [
        "{ kind = \"command\", command = [\"touch\", \"pwned\"] }",
        "{ kind = \"command\", command = [\"touch\", \"pwned\"], sandbox = true }",
        "{ kind = \"code\", sandbox = \"weak\" }",
    ] {
        let (status, problem) = submit(&text.replace("{ kind = \"math\" }", reward), &inside);
        assert_eq!(status, 403, "{reward}: {problem}");
        assert!(problem["hint"].as_str().unwrap().contains("--allow-commands"), "{problem}");
    }
    let http =
        text.replace("{ kind = \"math\" }", "{ kind = \"http\", url = \"http://127.0.0.1:1/\" }");
    assert_eq!(submit(&http, &inside).0, 403);
    refuses_ways_out(&daemon, &text, &inside);
    let (status, run) = submit(&text, &inside);
    assert_eq!((status, &run["status"]), (201, &json!("queued")), "{run}");
    daemon.until_is(1, "finished");
    assert!(!temp.path().join("pwned").exists() && !inside.join("pwned").exists());
}

/// From a pipeline in an allowed folder: by a link, by going up, by an override, by a query, by a model's files.
fn refuses_ways_out(daemon: &Daemon, text: &str, inside: &Path) {
    let submit = |text: &str, sets: &[&str]| {
        daemon.post("/api/v1/runs", &json!({ "pipeline": text, "sets": sets, "base_dir": inside }))
    };
    let outside = inside.parent().unwrap();
    std::os::unix::fs::symlink(outside.join("problems.jsonl"), inside.join("link.jsonl")).unwrap();
    std::os::unix::fs::symlink(outside, inside.join("up")).unwrap();
    for path in ["link.jsonl", "up/problems.jsonl", "../problems.jsonl", "up/*.jsonl", "/etc/*.csv"]
    {
        let (status, problem) =
            submit(&text.replace("\"problems.jsonl\"", &format!("{path:?}")), &[]);
        assert_eq!(status, 403, "{path}: {problem}");
        let (status, problem) = submit(text, &[&format!("tables.problems={path}")]);
        assert_eq!(status, 403, "{path}: {problem}");
    }
    let count = "SELECT step, count(*) AS n FROM zero GROUP BY step ORDER BY step";
    for sql in [
        "SELECT * FROM '../problems.jsonl'",
        "SELECT * FROM '/etc/passwd'",
        "COPY zero TO 'pwned' STORED AS CSV",
        "CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'",
    ] {
        let (status, problem) = submit(&text.replace(count, sql), &[]);
        assert_eq!(status, 400, "{sql}: {problem}");
    }
    let model = inside.join("model");
    fs_err::create_dir(&model).unwrap();
    fs_err::write(model.join("config.json"), "{}").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", model.join("model.safetensors")).unwrap();
    let (status, problem) = submit(&format!("[models]\nlinked = \"model\"\n{text}"), &[]);
    assert_eq!((status, problem["type"].as_str()), (403, Some("/problems/forbidden")), "{problem}");
}

#[test]
fn a_token_is_required_where_others_could_ask() {
    let temp = write_pipeline(1);
    let mut daemon = Daemon::start(temp.path(), &["--listen", "0.0.0.0:0"]);
    assert!(daemon.log().contains("every request needs the token"), "{}", daemon.log());
    assert_eq!(daemon.get("/healthz").0, 200);
    for path in ["/api/v1/runs", "/metrics", "/v1/models", "/api/v1/openapi.json", "/nowhere"] {
        let (status, problem) = daemon.get(path);
        assert_eq!(
            (status, problem["type"].as_str()),
            (401, Some("/problems/unauthorized")),
            "{path}"
        );
    }
    daemon.token =
        Some("aha_0000000000000000000000000000000000000000000000000000000000000000".to_owned());
    assert_eq!(daemon.get("/api/v1/runs").0, 401);
    let token = fs_err::read_to_string(temp.path().join("home/token")).unwrap().trim().to_owned();
    let kept = fs_err::read(temp.path().join("home/queue.redb")).unwrap();
    assert!(
        !kept.windows(token.len()).any(|part| part == token.as_bytes()),
        "only a digest is kept"
    );
    daemon.token = Some(token.clone());
    assert_eq!(daemon.get("/api/v1/runs").0, 200);
    assert_eq!(daemon.aha(&["runs"]).code, Some(0), "clients find it in the home folder");
    daemon.signal("-TERM");
    daemon.child.wait().unwrap();
    // The home folder's copy is the clients': without it the token is the same.
    fs_err::remove_file(temp.path().join("home/token")).unwrap();
    let mut daemon = Daemon::start(temp.path(), &["--require-token"]);
    assert_eq!(daemon.get("/api/v1/runs").0, 401);
    assert_eq!(daemon.aha(&["runs"]).code, Some(1));
    daemon.token = Some(token);
    assert_eq!(daemon.get("/api/v1/runs").0, 200);
}

#[test]
fn a_home_folder_has_one_daemon() {
    let temp = write_pipeline(1);
    let _daemon = Daemon::start(temp.path(), &[]);
    let second = aha(temp.path(), &["daemon", "--listen", "127.0.0.1:0", "--home", "home"]);
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.stderr.contains("another daemon works in"), "{second:?}");
}
