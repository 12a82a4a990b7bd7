//! Every key of `code` does something.

use aha_reward::{Kind, NoBackends, Sample};
use serde_json::{Value, json};

use crate::key_cases::{Case, check_cases, check_keys};

/// Three is what it has to print.
const THREE: &str = r#"{"kind":"stdio","cases":[{"input":"","output":"3\n"}]}"#;
const THIRD: &str = r#"{"kind":"stdio","cases":[{"input":"","output":"0.333333333\n"}]}"#;
/// Three, then four.
const BOTH: &str =
    r#"{"kind":"stdio","cases":[{"input":"3","output":"3\n"},{"input":"4","output":"4\n"}]}"#;

/// It takes a second and a half of the processor's time.
const SLOW: &str = "import time\nwhile time.process_time() < 1.5: pass\nprint(3)";
/// The last block of code prints something else, the one in the tag doesn't.
const TAGGED: &str = "<a>\n```python\nprint(3)\n```\n</a>\n```python\nprint(0)\n```";
/// There is no code but in the thought.
const THOUGHT: &str = "```python\nprint(3)\n```\n</t>\nThat is it.";
/// Anybody may read it, but not in a sandbox that has a root of its own.
const LOOKS: &str =
    "import os\nprint(3 if os.path.exists('/etc/passwd') and os.path.exists('/var') else 0)";

fn case<'a>(
    key: &'static str,
    value: Value,
    (tests, completion): (&'a str, &'a str),
    [without, with]: [f32; 2],
) -> Case<'a> {
    let sample = Sample { completion, tests: Some(tests), ..Sample::default() };
    let within = json!({});
    let [without, with] = [without, with].map(|score| Ok(Some(score)));
    Case { kind: Kind::Code, key, value, within, sample, without, with }
}

pub fn every_key_of_code_does_something() {
    let cases = [
        case("think_tag", json!("t"), (THREE, THOUGHT), [1.0, 0.0]),
        case("answer_tag", json!("a"), (THREE, TAGGED), [0.0, 1.0]),
        case("score", json!("share"), (BOTH, "print(3)"), [0.0, 0.5]),
        case("language", json!("cpp"), (THREE, "```python\nprint(3)\n```"), [1.0, 0.0]),
        case("tolerance", json!(0.0), (THIRD, "print(1 / 3)"), [1.0, 0.0]),
        case("time_s", json!(1), (THREE, SLOW), [1.0, 0.0]),
        case("time_all_s", json!(1), (THREE, SLOW), [1.0, 0.0]),
        case("memory_mib", json!(96), (THREE, "x = bytearray(200 << 20)\nprint(3)"), [1.0, 0.0]),
        case("sandbox", json!("weak"), (THREE, LOOKS), [0.0, 1.0]),
    ];
    // How many run at a time is in a test of its own.
    check_keys(&[Kind::Code], &cases, &[(Kind::Code, "parallel")]);
    check_cases(&cases, &NoBackends);
}
