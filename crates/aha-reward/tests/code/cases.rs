//! Programs with their tests, written for this.

/// A completion, its tests, and the verdict.
pub struct Case {
    pub name: &'static str,
    pub prompt: &'static str,
    pub completion: &'static str,
    pub tests: &'static str,
    /// Further keys of the reward, after a comma.
    pub settings: &'static str,
    pub score: Option<f32>,
    /// A part of the reason; with " | " between them, several of which one is enough.
    pub reason: &'static str,
}

const NONE: Case =
    Case { name: "", prompt: "", completion: "", tests: "", settings: "", score: None, reason: "" };

const DOUBLE: &str = r#"{"kind":"asserts","tests":["assert double(2) == 4","assert double('a') == 'aa'","assert double([1]) == [1, 1]"]}"#;
const SUM: &str = r#"{"kind":"stdio","cases":[{"input":"1 2\n","output":"3\n"},{"input":"-5 5\n","output":"0\n"},{"input":"1000000000 1000000000\n","output":"2000000000"}]}"#;
const SHAPES: &str = r#"{"kind":"asserts","setup":"a = Box(2)\na.width = 3","tests":["assert area(a) == 6","assert a.width == 3 and a.height == 2","assert a.scaled(2).height == 4","assert area(a.scaled(2)) == 24"]}"#;
const HALVES: &str = r#"{"kind":"humaneval","entry_point":"half","test":"def check(candidate):\n    assert candidate(2) == 1\n    for i in range(3):\n        assert candidate(2 * i) == i\n    assert abs(candidate(3) - 1.5) < 1e-9\n"}"#;
const VALUES: &str = r#"{"kind":"asserts","tests":["assert same(None) is None","assert same((1, [2.5, {3: {4}}])) == (1, [2.5, {3: {4}}])","assert same(b'\\x00') == b'\\x00' and same(1j) == 1j","assert same(float('inf')) == float('inf') and same(float('nan')) != 0","assert same(10 ** 5000) == 10 ** 5000","assert same('\\u00e9\\U0001f600\\n\\'\\\"\\\\') == '\\u00e9\\U0001f600\\n\\'\\\"\\\\'","assert same(frozenset([1])) == frozenset([1]) and same(range(3)) == range(3)","assert same(True) is True and type(same(1)) is int","assert same(int) is int and same(lambda x: x + 1)(2) == 3"]}"#;
const CALLS_ITS_OWN: &str = r#"{"kind":"humaneval","entry_point":"f","test":"def check(candidate):\n    def go(x, y):\n        assert candidate(x) == y\n    go(1,2)\n    go(3,4)"}"#;
const ELSEWHERE: &str = r#"{"kind":"humaneval","entry_point":"f","test":"def assertion(out, exp):\n    assert out == exp\n\ndef check(candidate):\n    for i,o in zip([1,2],[2,3]):\n        assertion(candidate(i), o)"}"#;

pub const CASES: &[Case] = &[
    Case {
        name: "asserts pass",
        completion: "```python\ndef double(x):\n    return x + x\n```",
        tests: DOUBLE,
        score: Some(1.0),
        reason: "passes all 3 tests",
        ..NONE
    },
    Case {
        name: "asserts fail",
        completion: "def double(x):\n    return x * 3",
        tests: DOUBLE,
        score: Some(0.0),
        reason: "test 1 of 3 fails",
        ..NONE
    },
    Case {
        name: "asserts pass in part",
        completion: "def double(x):\n    return x + x if x != 'a' else x",
        tests: DOUBLE,
        settings: r#", "score": "share""#,
        score: Some(2.0 / 3.0),
        reason: "test 2 of 3 fails",
        ..NONE
    },
    Case {
        name: "asserts raise",
        completion: "def double(x):\n    return 2 ** x",
        tests: DOUBLE,
        score: Some(0.0),
        reason: "test 2 of 3 raises TypeError",
        ..NONE
    },
    Case {
        name: "the function is missing",
        completion: "def twice(x):\n    return x + x",
        tests: DOUBLE,
        score: Some(0.0),
        reason: "doesn't define `double`",
        ..NONE
    },
    Case {
        name: "no Python",
        completion: "Double it!",
        tests: DOUBLE,
        score: Some(0.0),
        reason: "SyntaxError",
        ..NONE
    },
    Case {
        name: "the chain of thought is not the program",
        completion: "<think>```python\ndef double(x): return x + x\n```</think>I can't.",
        tests: DOUBLE,
        score: Some(0.0),
        reason: "SyntaxError",
        ..NONE
    },
    Case {
        name: "objects go both ways",
        completion: "class Box:\n    def __init__(self, height): self.height = height\n    def scaled(self, by):\n        box = Box(self.height * by)\n        box.width = self.width * by\n        return box\ndef area(box): return box.width * box.height",
        tests: SHAPES,
        score: Some(1.0),
        ..NONE
    },
    Case {
        name: "values come back as they went",
        completion: "def same(x): return x",
        tests: VALUES,
        score: Some(1.0),
        ..NONE
    },
    Case {
        name: "a list is changed in its place",
        completion: "def fill(a): a.extend([1, 2])",
        tests: r#"{"kind":"asserts","setup":"a = [0]\nfill(a)","tests":["assert a == [0, 1, 2]"]}"#,
        score: Some(1.0),
        ..NONE
    },
    Case {
        name: "a generator is read",
        completion: "def up(n):\n    yield from range(n)",
        tests: r#"{"kind":"asserts","tests":["assert list(up(3)) == [0, 1, 2]"]}"#,
        score: Some(1.0),
        ..NONE
    },
    Case {
        name: "a function of the tests is called",
        completion: "def twice(f, x): return f(f(x))",
        tests: r#"{"kind":"asserts","tests":["assert twice(lambda x: x * 3, 2) == 18"]}"#,
        score: Some(1.0),
        ..NONE
    },
    Case {
        name: "an exception is expected",
        completion: "def f(x): raise ValueError('no')",
        tests: r#"{"kind":"asserts","tests":["try:\n    f(1)\n    assert False\nexcept ValueError:\n    pass"]}"#,
        score: Some(1.0),
        ..NONE
    },
    Case {
        name: "a function has a built-in one's name",
        completion: "def sum(a, b): return a * b",
        tests: r#"{"kind":"asserts","tests":["assert sum(2, 5) == 10"]}"#,
        score: Some(1.0),
        ..NONE
    },
    Case {
        name: "a slice is passed",
        completion: "class Row:\n    def __getitem__(self, at): return [at.start, at.stop, at.step]",
        tests: r#"{"kind":"asserts","tests":["assert Row()[1:3] == [1, 3, None]"]}"#,
        score: Some(1.0),
        ..NONE
    },
    Case {
        name: "an iterator ends",
        completion: "class Up:\n    n = 0\n    def __iter__(self): return self\n    def __next__(self):\n        self.n += 1\n        if self.n > 2: raise StopIteration\n        return self.n",
        tests: r#"{"kind":"asserts","tests":["assert [n for n in Up()] == [1, 2]"]}"#,
        score: Some(1.0),
        ..NONE
    },
    Case {
        name: "a function is passed on by the tests",
        completion: "def double(x): return x + x",
        tests: r#"{"kind":"asserts","tests":["assert list(map(double, [1, 2])) == [2, 4]"]}"#,
        score: Some(1.0),
        ..NONE
    },
    Case {
        name: "the tests lack an import",
        completion: "class np:\n    allclose = staticmethod(lambda a, b: True)\ndef f(x): return 1",
        tests: r#"{"kind":"asserts","tests":["assert np.allclose(f(1), [3.0])"]}"#,
        score: None,
        reason: "the tests use `np` without importing it",
        ..NONE
    },
    Case {
        name: "the program is asked whether it is right",
        completion: "def same(a, b): return True\ndef f(x): return 1",
        tests: r#"{"kind":"asserts","tests":["assert same(f(1), [3.0])"]}"#,
        score: None,
        reason: "a test leaves it to `same` of the program",
        ..NONE
    },
    Case {
        name: "exact numbers and dates come back as they went",
        completion: "def same(x): return x",
        tests: r#"{"kind":"asserts","setup":"from decimal import Decimal\nfrom fractions import Fraction\nfrom datetime import date, datetime, timedelta","tests":["assert same(Decimal('1.50')) == Decimal('1.5') and str(same(Decimal('NaN'))) == 'NaN'","assert same({Fraction(1, 3)}) == {Fraction(1, 3)}","assert same([date(2020, 1, 2), datetime(2020, 1, 2, 3, 4, 5, 6)]) == [date(2020, 1, 2), datetime(2020, 1, 2, 3, 4, 5, 6)]","assert same(timedelta(-1, 2, 3)) == timedelta(-1, 2, 3)"]}"#,
        score: Some(1.0),
        ..NONE
    },
    Case {
        name: "a date is returned where none is passed",
        completion: "from datetime import date\nfrom fractions import Fraction\ndef f(x): return date(2020, 1, x), Fraction(1, x)",
        tests: r#"{"kind":"asserts","tests":["assert f(2) == (datetime.date(2020, 1, 2), 0.5)"]}"#,
        score: Some(1.0),
        ..NONE
    },
    Case {
        name: "an exception's text is its own",
        completion: "class Negative(ValueError): pass\ndef f(x):\n    if x < 0: raise Negative('neg')\n    return {}['no']",
        tests: r#"{"kind":"asserts","tests":["try:\n    f(-1)\n    assert False\nexcept ValueError as e:\n    assert str(e) == 'neg'","try:\n    f(1)\n    assert False\nexcept KeyError as e:\n    assert e.args == ('no',)"]}"#,
        score: Some(1.0),
        ..NONE
    },
    Case {
        name: "a function has a name of the library's",
        completion: "def reduce(a, b): return a // b",
        tests: r#"{"kind":"asserts","tests":["assert reduce(5, 2) == 2"]}"#,
        score: Some(1.0),
        ..NONE
    },
    Case {
        name: "a test passes what can't be sent",
        completion: "def f(x): pass",
        tests: r#"{"kind":"asserts","tests":["assert f(object()) is None"]}"#,
        score: None,
        reason: "a test passes a object",
        ..NONE
    },
    Case {
        name: "sets are compared as sets",
        completion: "def words(s): return list(set(s.split()))",
        tests: r#"{"kind":"asserts","tests":["assert sorted(words('b a b')) == ['a', 'b']","assert set(words('b a b')) == set(['a', 'b'])"]}"#,
        score: Some(1.0),
        ..NONE
    },
    Case {
        name: "the tests are no Python",
        completion: "def f(): pass",
        tests: r#"{"kind":"asserts","tests":["assert f( =="]}"#,
        score: None,
        reason: "the tests are no Python",
        ..NONE
    },
    Case {
        name: "the tests can't be read",
        completion: "x",
        tests: "{}",
        score: None,
        reason: "can't be read",
        ..NONE
    },
    Case {
        name: "humaneval passes",
        completion: "def half(x):\n    return x / 2",
        tests: HALVES,
        score: Some(1.0),
        reason: "passes all 3 tests",
        ..NONE
    },
    Case {
        name: "humaneval passes in part",
        completion: "def half(x):\n    return x // 2",
        tests: HALVES,
        settings: r#", "score": "share""#,
        score: Some(2.0 / 3.0),
        reason: "test 3 of 3 fails",
        ..NONE
    },
    Case {
        name: "a body continues the prompt",
        prompt: "from math import floor\n\ndef half(x):\n    \"\"\"Half of x.\"\"\"\n",
        completion: "    return floor(x) / 2 + (x - floor(x)) / 2",
        tests: HALVES,
        score: Some(1.0),
        ..NONE
    },
    Case {
        name: "a body in a chat",
        prompt: "<|user|>Complete:\n```python\ndef half(x):\n    \"\"\"Half of x.\"\"\"\n```<|end|>",
        completion: "```python\n    return x / 2\n```",
        tests: HALVES,
        score: Some(1.0),
        ..NONE
    },
    Case {
        name: "check asserts nothing",
        completion: "def f(): pass",
        tests: r#"{"kind":"humaneval","entry_point":"f","test":"def check(candidate):\n    pass"}"#,
        score: None,
        reason: "asserts nothing",
        ..NONE
    },
    Case {
        name: "check calls its own function",
        completion: "def f(x): return 0",
        tests: CALLS_ITS_OWN,
        score: Some(0.0),
        reason: "test 1 of 2 fails",
        ..NONE
    },
    Case {
        name: "check calls another function",
        completion: "def f(x): return 0",
        tests: r#"{"kind":"humaneval","entry_point":"f","test":"def same(a,b):\n    assert a==b\ndef check(candidate):\n    assert candidate(-1)==0\n    same(candidate(1),2)"}"#,
        score: Some(0.0),
        reason: "test 2 of 2 fails",
        ..NONE
    },
    Case {
        name: "check raises by itself",
        completion: "def f(x): return 0",
        tests: r#"{"kind":"humaneval","entry_point":"f","test":"def check(candidate):\n    assert candidate(-1) == 0\n    if candidate(1) != 2:\n        raise AssertionError"}"#,
        score: Some(0.0),
        reason: "test 2 of 2 fails",
        ..NONE
    },
    Case {
        name: "check fails after its last test",
        completion: "def f(x): return []",
        tests: r#"{"kind":"humaneval","entry_point":"f","test":"def check(candidate):\n    a = candidate\n    assert a(0) == []\n    b = a.missing"}"#,
        score: Some(0.0),
        reason: "test 1 of 1 raises AttributeError",
        ..NONE
    },
    Case {
        name: "check returns early",
        completion: "def f(x): return x + 1",
        tests: r#"{"kind":"humaneval","entry_point":"f","test":"def check(candidate):\n    assert candidate(1) == 2\n    if True:\n        return\n    assert False"}"#,
        score: Some(1.0),
        ..NONE
    },
    Case {
        name: "check leaves asserting to another function",
        completion: "def f(x): return x + 1",
        tests: ELSEWHERE,
        score: Some(1.0),
        ..NONE
    },
    Case {
        name: "check leaves asserting to another function, which fails",
        completion: "def f(x): return 2",
        tests: ELSEWHERE,
        score: Some(0.0),
        reason: "test 1 of 1 fails",
        ..NONE
    },
    Case {
        name: "check only calls",
        completion: "def f(x): return x + 1",
        tests: r#"{"kind":"humaneval","entry_point":"f","test":"def unused():\n    assert False\ndef check(candidate):\n    print(candidate(1))"}"#,
        score: None,
        reason: "asserts nothing",
        ..NONE
    },
    Case {
        name: "check's share is of all that can fail",
        completion: "def f(x): return 2",
        tests: CALLS_ITS_OWN,
        settings: r#", "score": "share""#,
        score: Some(0.5),
        reason: "test 2 of 2 fails",
        ..NONE
    },
    Case {
        name: "the setup imports what isn't there",
        completion: "def f(x): return 2",
        tests: r#"{"kind":"asserts","setup":"import nowhere_to_be_found as np","tests":["assert f(1)==2"]}"#,
        score: None,
        reason: "ModuleNotFoundError",
        ..NONE
    },
    Case {
        name: "a later test imports what isn't there",
        completion: "def f(x): return 2",
        tests: r#"{"kind":"asserts","tests":["assert f(1)==2","import nowhere.to_be_found\nassert f(1)==2"]}"#,
        score: None,
        reason: "ModuleNotFoundError",
        ..NONE
    },
    Case {
        name: "the program imports what isn't there",
        completion: "def f(x): import nowhere_to_be_found",
        tests: r#"{"kind":"asserts","tests":["import math\nassert f(1)==2"]}"#,
        score: Some(0.0),
        reason: "ModuleNotFoundError",
        ..NONE
    },
    Case {
        name: "the setup fails",
        completion: "def f(x): return 2",
        tests: r#"{"kind":"asserts","setup":"1/0","tests":["assert f(1)==2"]}"#,
        score: None,
        reason: "ZeroDivisionError",
        ..NONE
    },
    Case {
        name: "the setup fails and the program is missing",
        completion: "def g(x): return 2",
        tests: r#"{"kind":"asserts","setup":"1/0","tests":["assert f(1)==2"]}"#,
        score: Some(0.0),
        reason: "doesn't define `f`",
        ..NONE
    },
    Case {
        name: "a test can't be compiled",
        completion: "def f(x): return 2",
        tests: r#"{"kind":"asserts","tests":["assert f(1)==2\nreturn"]}"#,
        score: None,
        reason: "the tests are no Python",
        ..NONE
    },
    Case {
        name: "a test never calls the program",
        completion: "def f(x): return 2",
        tests: r#"{"kind":"asserts","tests":["while True: pass\nassert f(1)==2"]}"#,
        score: None,
        reason: "the tests take too long before they call the program",
        ..NONE
    },
    Case {
        name: "a test goes on without end once it has called the program",
        completion: "def f(x): return 2",
        tests: r#"{"kind":"asserts","tests":["while f(1) == 2:\n    while True: pass"]}"#,
        score: Some(0.0),
        // The judge's limit and the program's are met at once: which is seen first, the machine's load decides.
        reason: "the tests take too long | time over the limit",
        ..NONE
    },
    Case {
        name: "long integers",
        completion: "def f(x): return x",
        tests: r#"{"kind":"asserts","tests":["assert f(f(10 ** 100000)) == 10 ** 100000"]}"#,
        score: Some(1.0),
        ..NONE
    },
    Case {
        name: "python reads and prints",
        completion: "```python\na, b = map(int, input().split())\nprint(a + b)\nexit()\n```",
        tests: SUM,
        score: Some(1.0),
        reason: "passes all 3 tests",
        ..NONE
    },
    Case {
        name: "python uses what it didn't import",
        completion: "a, b = map(int, sys.stdin.read().split())\nprint(a + b)",
        tests: SUM,
        score: Some(0.0),
        reason: "NameError",
        ..NONE
    },
    Case {
        name: "python runs as main",
        completion: "import sys\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    a: 'int'\ndef main():\n    print(sum(map(int, sys.stdin.read().split())))\nif __name__ == '__main__':\n    main()",
        tests: SUM,
        score: Some(1.0),
        ..NONE
    },
    Case {
        name: "wrong in part",
        completion: "a, b = map(int, input().split())\nprint(abs(a) + abs(b))",
        tests: SUM,
        settings: r#", "score": "share""#,
        score: Some(2.0 / 3.0),
        reason: "case 2 of 3: prints 10",
        ..NONE
    },
    Case {
        name: "too slow",
        completion: "while True: pass",
        tests: SUM,
        settings: r#", "time_s": 1"#,
        score: Some(0.0),
        reason: "processor time over the limit",
        ..NONE
    },
    Case {
        name: "too slow in all",
        completion: "import time\na, b = map(int, input().split())\ntime.sleep(1.3)\nprint(a + b)",
        tests: SUM,
        settings: r#", "score": "share", "time_all_s": 2"#,
        score: Some(1.0 / 3.0),
        reason: "case 2 of 3: time over the limit: what was left of `time_all_s`",
        ..NONE
    },
    Case {
        name: "one start is too slow for all",
        completion: "import time\na, b = map(int, input().split())\nwhile time.process_time() < 3: pass\nprint(a + b)",
        tests: SUM,
        settings: r#", "score": "share", "time_all_s": 1"#,
        score: Some(0.0),
        reason: "case 1 of 3: processor time over the limit: what was left of `time_all_s`",
        ..NONE
    },
    Case {
        name: "weak isolation",
        completion: "a, b = map(int, input().split())\nprint(a + b)",
        tests: SUM,
        settings: r#", "sandbox": "weak""#,
        score: Some(1.0),
        ..NONE
    },
    Case {
        name: "weak isolation has no network",
        completion: "import socket\ntry:\n    socket.socket()\nexcept OSError:\n    a, b = map(int, input().split())\n    print(a + b)",
        tests: SUM,
        settings: r#", "sandbox": "weak""#,
        score: Some(1.0),
        ..NONE
    },
    Case {
        name: "weak isolation with asserts",
        completion: "def double(x): return x + x",
        tests: DOUBLE,
        settings: r#", "sandbox": "weak""#,
        score: Some(1.0),
        ..NONE
    },
    Case {
        name: "floats are close",
        completion: "print(1 / 3)",
        tests: r#"{"kind":"stdio","cases":[{"input":"","output":"0.333333333\n"}]}"#,
        score: Some(1.0),
        ..NONE
    },
    Case {
        name: "floats have to be equal",
        completion: "print(1 / 3)",
        tests: r#"{"kind":"stdio","cases":[{"input":"","output":"0.333333333\n"}]}"#,
        settings: r#", "tolerance": 0.0"#,
        score: Some(0.0),
        reason: "prints 0.3333333333333333",
        ..NONE
    },
    Case {
        name: "c",
        completion: "```c\n#include <stdio.h>\nint main(void) { long a, b; scanf(\"%ld %ld\", &a, &b); printf(\"%ld\\n\", a + b); }\n```",
        tests: SUM,
        score: Some(1.0),
        ..NONE
    },
    Case {
        name: "c overflows",
        completion: "```c\n#include <stdio.h>\nint main(void) { short a, b; scanf(\"%hd %hd\", &a, &b); printf(\"%hd\\n\", (short)(a + b)); }\n```",
        tests: SUM,
        score: Some(0.0),
        reason: "case 3 of 3",
        ..NONE
    },
    Case {
        name: "c crashes",
        completion: "```c\nint main(void) { *(volatile int *)0 = 1; }\n```",
        tests: SUM,
        score: Some(0.0),
        reason: "signal 11",
        ..NONE
    },
    Case {
        name: "c++",
        completion: "```cpp\n#include <iostream>\nint main() { long long a, b; std::cin >> a >> b; std::cout << a + b << std::endl; }\n```",
        tests: SUM,
        score: Some(1.0),
        ..NONE
    },
    Case {
        name: "c++ doesn't compile",
        completion: "```cpp\nint main() { return x; }\n```",
        tests: SUM,
        score: Some(0.0),
        reason: "does not compile",
        ..NONE
    },
    Case {
        name: "rust",
        completion: "```rust\nuse std::io::Read;\nfn main() {\n    let mut s = String::new();\n    std::io::stdin().read_to_string(&mut s).unwrap();\n    println!(\"{}\", s.split_whitespace().map(|w| w.parse::<i64>().unwrap()).sum::<i64>());\n}\n```",
        tests: SUM,
        score: Some(1.0),
        ..NONE
    },
    Case {
        name: "another language than asked for",
        completion: "```python\nprint(3)\n```",
        tests: SUM,
        settings: r#", "language": "cpp""#,
        score: Some(0.0),
        reason: "no block of code is cpp",
        ..NONE
    },
];
