//! A reward of kind `command` in the sandbox.

use aha_reward::{NoBackends, Sample, Spec};
use serde_json::json;

/// Scores by length, or by what it can do.
const PROGRAM: &str = r#"
import json, os, socket, sys
for line in sys.stdin:
    sample = json.loads(line)
    what, score = sample["completion"], None
    if what == "die": sys.exit(3)
    if what == "hang": import time; time.sleep(3600)
    if what == "eat": b = [bytes(1 << 26) for _ in range(100)]
    if what == "network":
        try: socket.create_connection(("127.0.0.1", int(sample["prompt"])), 1)
        except OSError: score = 0
    if what == "file": score = int(os.path.exists(sample["prompt"]))
    if what == "environment": score = int("CARGO_MANIFEST_DIR" in os.environ or "USER" in os.environ)
    if score is None: score = len(what)
    print(json.dumps({"id": sample["id"], "score": score}), flush=True)
"#;

pub fn a_command_scores_in_the_sandbox() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("score.py");
    fs_err::write(&script, PROGRAM).unwrap();
    let spec = json!({
        "kind": "command", "command": ["python3", script], "sandbox": true, "sample_seconds_max": 5,
    });
    let spec: Spec = serde_json::from_value(spec).unwrap();
    let verifier = spec.resolve(&NoBackends).ok().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let secret = script.to_str().unwrap();
    for (completion, prompt, want) in [
        ("four", "", Ok(4.0)),
        ("die", "", Err("died: exit code 3")),
        ("network", &port, Ok(0.0)),
        ("file", secret, Ok(0.0)),
        ("environment", "", Ok(0.0)),
        ("eat", "", Err("the program died")),
        ("hang", "", Err("no answer within 5 s")),
        ("seven..", "", Ok(7.0)),
    ] {
        let verdict = verifier.score(&Sample { prompt, completion, ..Sample::default() });
        let reason = want.err().unwrap_or("");
        assert!(
            verdict.score == want.ok() && verdict.reason.contains(reason),
            "{completion}: {verdict:?}"
        );
    }
}
