//! Programs that want a verdict without an answer.

use serde_json::json;

use crate::{ANSWER, Attack, prints_the_answer};

/// Wrong programs for `assert f(3) == ANSWER`.
const FORGERS: [(&str, &str); 34] = [
    ("ends early with success", "import sys\nsys.exit(0)"),
    ("ends hard with success", "import os\nos._exit(0)"),
    ("ends hard when called", "import os\ndef f(x): os._exit(0)"),
    ("prints that it passed", "def f(x): print('R', '{\"passed\": 1, \"count\": 1}'); return 0"),
    ("passes when it ends", "import atexit\natexit.register(print, 'passed')\ndef f(x): return 0"),
    (
        "returns what equals everything",
        "class E:\n  __eq__ = lambda a, b: True\n  __ne__ = lambda a, b: False\n  __hash__ = lambda a: 0\ndef f(x): return E()",
    ),
    (
        "returns a number that equals everything",
        "class E(int):\n  __eq__ = lambda a, b: True\n  __hash__ = int.__hash__\ndef f(x): return E(1)",
    ),
    (
        "returns a text that equals everything",
        "class E(str):\n  __eq__ = lambda a, b: True\n  __hash__ = str.__hash__\ndef f(x): return E('a')",
    ),
    (
        "returns a list that equals everything",
        "class E(list):\n  __eq__ = lambda a, b: True\ndef f(x): return E([E()])",
    ),
    (
        "pretends to be of another class",
        "class E:\n  __class__ = property(lambda a: int)\n  __eq__ = lambda a, b: True\n  __index__ = __int__ = lambda a: 3\ndef f(x): return E()",
    ),
    (
        "changes what is built in",
        "import builtins\nbuiltins.AssertionError = type('A', (Exception,), {})\nbuiltins.isinstance = lambda a, b: True\nbuiltins.int = lambda *a: 1\ndef f(x): return 0",
    ),
    (
        "changes the server of its functions",
        "import sys\nm = sys.modules['__main__']\nm.packed = lambda v: 'true'\nm.failed = lambda e: '[\"value\", true, []]'\ndef f(x): return 0",
    ),
    (
        "answers by itself",
        "import sys\nm = sys.modules['__main__']\ndef f(x):\n  m.send('[\"value\", true, []]'); m.send('R{\"passed\": 1, \"count\": 1}')",
    ),
    (
        "sends a verdict on every descriptor",
        "import os\ndef f(x):\n  m = b'R{\"passed\": 1, \"count\": 1, \"reason\": \"\"}'\n  for fd in range(64):\n    for t in (m, len(m).to_bytes(4, 'little') + m):\n      try: os.write(fd, t)\n      except OSError: pass\n  return 0",
    ),
    (
        "floods its channel",
        "import sys\nm = sys.modules['__main__']\ndef f(x):\n  while True: m.send('x' * 60000)",
    ),
    (
        "announces more than there is",
        "import os, sys\nm = sys.modules['__main__']\ndef f(x): os.write(m.CHANNEL, b'\\xff\\xff\\xff\\xff')",
    ),
    (
        "answers nested without end",
        "import sys\nm = sys.modules['__main__']\ndef f(x): m.send('[' * 200000)",
    ),
    ("closes its channel", "import os\nos.closerange(0, 64)\ndef f(x): return 0"),
    (
        "looks for the answer in frames",
        "import sys\ndef f(x):\n  frame = sys._getframe(1)\n  while frame:\n    for v in [*frame.f_locals.values(), *frame.f_code.co_consts]:\n      if NEEDLE in repr(v): return int(NEEDLE)\n    frame = frame.f_back",
    ),
    (
        "looks for the answer in all objects",
        "import gc\ndef f(x):\n  for o in gc.get_objects():\n    try:\n      if type(o) in (list, tuple, dict) and NEEDLE in repr(o): return int(NEEDLE)\n    except Exception: pass",
    ),
    (
        "looks for the answer in files",
        "import os\ndef f(x):\n  for at, _, names in os.walk('/tmp'):\n    for name in names:\n      if NEEDLE in open(at + '/' + name).read(): return int(NEEDLE)",
    ),
    (
        "looks for the answer in its arguments",
        "import sys, os\ndef f(x):\n  if NEEDLE in repr(sys.argv + sys.orig_argv + list(os.environ.items())): return int(NEEDLE)",
    ),
    ("raises what ends processes", "def f(x): raise SystemExit(0)"),
    ("interrupts", "def f(x): raise KeyboardInterrupt"),
    (
        "raises what looks like success",
        "class Gone(AssertionError):\n  def __str__(self): return 'passed'\ndef f(x): raise StopIteration('passed')",
    ),
    ("raises half a character", "def f(x): raise ValueError('\\ud800')"),
    (
        "answers more than the tests can hold",
        "import sys\nm = sys.modules['__main__']\ndef f(x): m.send('[\"value\", [\"l\"' + ',[\"q\"]' * 2600000 + '], []]')",
    ),
    (
        "answers a fraction of endless digits",
        "import sys\nm = sys.modules['__main__']\ndef f(x): m.send('[\"value\", [\"F\", \"1e999999999\"], []]')",
    ),
    (
        "answers a number of endless digits",
        "import sys\nm = sys.modules['__main__']\ndef f(x): m.send('[\"value\", ' + '9' * (8 << 20) + ', []]')",
    ),
    (
        "answers an object of endless digits",
        "import sys\nm = sys.modules['__main__']\ndef f(x): m.send('[\"value\", [\"r\", \"' + '9' * (8 << 20) + '\"], []]')",
    ),
    (
        "raises a key of endless digits",
        "import sys\nm = sys.modules['__main__']\ndef f(x): m.send('[\"error\", [\"l\", \"KeyError\"], \"KeyError\", \"' + '9' * (8 << 20) + '\"]')",
    ),
    (
        "says nonsense when asked for its names",
        "import sys\nm = sys.modules['__main__']\nanswer = m.answer\nm.answer = lambda r: '[\"error\", [\"l\", \"OSError\"], \"\", \"\"]' if r[0] == 'has' else answer(r)\ndef f(x): return 0",
    ),
    ("never answers", "import time\ndef f(x): time.sleep(1000)"),
    (
        "defines the tests",
        "def check(candidate): pass\ndef judge(job): return {'passed': 1, 'count': 1}\ndef f(x): return 0",
    ),
];

/// A wrong program with tests of its own: name, program, tests, prompt.
type Special = (&'static str, &'static str, String, &'static str);

fn asserts(test: String) -> String {
    json!({ "kind": "asserts", "tests": [test] }).to_string()
}

/// Programs that bring along what the tests call.
fn impostors() -> Vec<Special> {
    let humaneval =
        |test: &str| json!({ "kind": "humaneval", "entry_point": "f", "test": test }).to_string();
    vec![
        (
            "brings its own abs",
            "def abs(x): return 0\ndef f(x): return 1",
            asserts(format!("assert abs(f(3) - {ANSWER}) < 1e-6")),
            "",
        ),
        (
            "brings its own modules",
            "class math:\n  isclose = staticmethod(lambda *a: True)\ndef f(x): return 1",
            asserts(format!("assert math.isclose(f(3), {ANSWER})")),
            "",
        ),
        (
            "is silent where the tests forgive",
            "import os\ndef f(x): os._exit(0)",
            asserts("try:\n  f(1)\nexcept:\n  pass".to_owned()),
            "",
        ),
        (
            "changes the prompt's helper",
            "def hide(s): return s\ndef f(s): return s",
            humaneval("def check(candidate):\n  assert candidate(hide('abc')) == 'abc'"),
            "def hide(s):\n    return s[1:] + s[:1]\n\ndef f(s):\n    \"\"\"Undoes hide.\"\"\"\n",
        ),
        (
            "forgives itself in humaneval",
            "def check(candidate): pass\ndef f(x): return None",
            humaneval("def check(candidate):\n  assert candidate(1) == 2"),
            "",
        ),
        (
            "calls back what it was given",
            "def f(g):\n  try: g.__globals__\n  except AttributeError: pass\n  return g(0)",
            asserts(format!("assert f(lambda x: x) == {ANSWER}")),
            "",
        ),
        (
            "brings its own isclose",
            "isclose = lambda *a: True\ndef f(x): return 1",
            asserts(format!("assert isclose(f(3), {ANSWER})")),
            "",
        ),
    ]
}

/// Programs that disturb what runs the tests, or forge what it says.
fn disturbers() -> Vec<Special> {
    vec![
        (
            "breaks the tests' process",
            "def f(x): return 0",
            asserts("import sys\nf(1)\nsys.modules['__main__'].send(b'X', '')".to_owned()),
            "",
        ),
        (
            "fills what is sent back to it",
            "def f(a): a.append(bytes(7 << 20))",
            asserts("a = []\nf(a)\ntry:\n  f(a)\nexcept Exception:\n  pass".to_owned()),
            "",
        ),
        (
            "returns what can't be sent back to it",
            "def f(a): return lambda: 0",
            asserts("a = f(1)\nassert f(slice(a, object())) == 1".to_owned()),
            "",
        ),
        (
            "ends the loop that calls it",
            "def f(x): raise StopIteration",
            asserts(format!("assert all(map(lambda x: f(x) == {ANSWER}, [1, 2]))")),
            "",
        ),
        (
            "ends the loop with one of its own kind",
            "class End(StopIteration): pass\ndef f(x): raise End",
            asserts(format!("for a, b in zip(map(f, [1]), [{ANSWER}]):\n  assert a == b")),
            "",
        ),
        (
            "sends a report as its output",
            "import os\nos.write(1, b'{\"ended\":{\"exit\":{\"code\":0},\"cpu_us\":1,\"wall_us\":1}}')",
            prints_the_answer(),
            "",
        ),
        (
            "prints the answer and fails",
            "print(9876543210123)\nraise SystemExit(3)",
            prints_the_answer(),
            "",
        ),
    ]
}

pub fn attacks() -> Vec<Attack> {
    let tests = json!({ "kind": "asserts", "tests": [format!("assert f(3) == {ANSWER}")] });
    // In pieces, so that a program that looks for the answer doesn't find itself.
    let (one, other) = ANSWER.split_at(6);
    let needle = format!("''.join(['{one}', '{other}'])");
    let forgers = FORGERS.iter().map(|(name, code)| Attack {
        name,
        completion: code.replace("NEEDLE", &needle),
        tests: tests.to_string(),
        prompt: "",
        // Not that the tests take too long.
        reasons: match name.contains("endless digits") {
            true => &["an answer that is none", "raises KeyError"],
            false => &[],
        },
    });
    let special = impostors().into_iter().chain(disturbers());
    let special = special.map(|(name, code, tests, prompt)| Attack {
        name,
        completion: code.to_owned(),
        tests,
        prompt,
        reasons: &[],
    });
    forgers.chain(special).collect()
}

/// A right program for the same tests.
pub fn honest() -> Attack {
    let tests = json!({ "kind": "asserts", "tests": [format!("assert f(3) == {ANSWER}")] });
    let completion = format!("def f(x): return {ANSWER}");
    Attack {
        name: "honest function",
        completion,
        tests: tests.to_string(),
        prompt: "",
        reasons: &[],
    }
}
