//! ops/gpu-check without a GPU: on this machine, and where programs say what they would with one.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo")).join("../..")
}

/// The script's output, and what it wrote.
fn gpu_check(dir: &Path, args: &[&str]) -> (Output, Value) {
    let (json, logs) = (dir.join("figures.json"), dir.join("logs"));
    let output = Command::new("python3")
        .arg(root().join("ops/gpu-check"))
        .args(["--json".as_ref(), json.as_os_str(), "--logs".as_ref(), logs.as_os_str()])
        .args(args)
        .output()
        .expect("python3 runs");
    let written = std::fs::read(&json).unwrap_or_default();
    let value = serde_json::from_slice(&written);
    let value = value.unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output, value)
}

/// Status and figure of the row of this part whose name contains this.
#[track_caller]
fn row<'a>(found: &'a Value, part: &str, name: &str) -> &'a Value {
    let rows = found["rows"].as_array().expect("rows");
    let is = |row: &&Value| {
        row["part"] == part && row["name"].as_str().is_some_and(|text| text.contains(name))
    };
    rows.iter().find(is).unwrap_or_else(|| panic!("no row {part} {name}: {rows:#?}"))
}

#[test]
fn a_machine_without_a_device_is_said_to_have_none() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--aha", env!("CARGO_BIN_EXE_aha"), "--device", "cuda:63"];
    let (output, found) = gpu_check(dir.path(), &args);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_eq!(row(&found, "doctor", "device")["status"], "failed");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("no CUDA device: "), "{text}");
}

#[test]
fn a_part_that_fails_crashes_or_hangs_is_a_row_and_the_rest_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let here = root().join("crates/aha/tests/all/gpu_check");
    let [aha, python] = ["aha.py", "python.py"].map(|name| here.join(name));
    let given = ["--aha", aha.to_str().unwrap(), "--python", python.to_str().unwrap()];
    let parts = ["--parts", "checks,run,bench,peers", "--check-seconds", "2"];
    let (output, found) = gpu_check(dir.path(), &[given, parts].concat());
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let status =
        |part: &str, name: &str| row(&found, part, name)["status"].as_str().unwrap().to_owned();
    let note =
        |part: &str, name: &str| row(&found, part, name)["note"].as_str().unwrap().to_owned();
    assert_eq!(status("checks", "driver"), "ok");
    assert_eq!(status("checks", "grpo: one"), "failed");
    assert_eq!(status("checks", "models"), "failed");
    assert!(note("checks", "models").contains("SIGSEGV"), "{}", note("checks", "models"));
    assert!(
        note("checks", "determinism").contains("stopped after"),
        "{}",
        note("checks", "determinism")
    );
    assert_eq!(row(&found, "checks", "P1 qwen2, bf16")["figure"], 0.0);
    assert_eq!(status("run", "both devices"), "ok");
    // 5e5 GFLOP/s of 989.5 TFLOP/s.
    assert_eq!(status("bench", "train qwen2.5-1.5b 1x4096"), "met");
    assert_eq!(status("bench", "train qwen2.5-0.5b 1x4096"), "shown");
    assert_eq!(status("bench", "decode qwen2.5-0.5b 1x1"), "missed");
    assert_eq!(status("bench", "decode qwen2.5-0.5b 256x1"), "met");
    assert_eq!(status("bench", "matmul"), "error");
    assert!(note("bench", "matmul").contains("out of memory"));
    let ratio = |name: &str| row(&found, "ratio", name)["ratio"].as_f64().unwrap();
    assert_eq!(
        (ratio("attention backward"), status("ratio", "attention backward")),
        (0.9375, "met".into())
    );
    assert_eq!((ratio("grpo 8x16"), status("ratio", "grpo 8x16")), (6.0, "met".into()));
    assert_eq!((ratio("grpo memory"), status("ratio", "grpo memory")), (0.5, "met".into()));
    assert_eq!(ratio("train qwen2.5-1.5b 1x4096, beside torch autocast"), 1.25);
    assert_eq!(status("peers", "trl"), "skipped");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("| bench  | train qwen2.5-1.5b 1x4096"), "{text}");
}
