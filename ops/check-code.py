#!/usr/bin/env python3
"""Runs canonical solutions of HumanEval and MBPP, and a mutant of each, through `aha grade --reward code`.

    ops/check-code.py AHA FILE.parquet…

AHA is the program. A file has the columns `id`, `prompt`, `answer`, `solution` and `tests`, as
datasets/README.md has them. Every solution must score 1. A mutant is the solution with one thing changed: a
comparison, an operator, a constant, or a returned value, whatever comes first in that order. It must score 0, or
plain Python must accept it as well: then its tests don't tell it from the solution, which is how it is explained.
Plain Python runs here, outside of any sandbox: give only solutions that you trust. Needs pyarrow.
"""

import ast
import collections
import json
import subprocess
import sys
import tempfile
import time

import pyarrow.parquet as parquet

COMPARISONS = {ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq,
               ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is}
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
             ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
             ast.BitXor: ast.BitOr, ast.LShift: ast.RShift, ast.RShift: ast.LShift}


def mutants(program, first_line):
    """Programs with one thing changed from that line on, comparisons first; and what was changed."""
    for kind in ("comparison", "operator", "constant", "return"):
        count = sum(1 for _ in ast.walk(ast.parse(program)))
        for wanted in range(count):
            tree = ast.parse(program)
            node = next(node for idx, node in enumerate(ast.walk(tree)) if idx == wanted)
            if getattr(node, "lineno", 0) < first_line:
                continue
            if kind == "comparison" and isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
                node.ops[0] = COMPARISONS[type(node.ops[0])]()
            elif kind == "operator" and isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in OPERATORS:
                node.op = OPERATORS[type(node.op)]()
            elif kind == "constant" and isinstance(node, ast.Constant) and type(node.value) in (int, float):
                node.value += 1
            elif kind == "return" and isinstance(node, ast.Return) and node.value is not None:
                node.value = ast.Constant(None)
            else:
                continue
            yield kind, ast.unparse(ast.fix_missing_locations(tree))


def plain_python_passes(program, tests):
    """What the program scores where everything runs in one process, which is what the data set's authors did."""
    if tests["kind"] == "asserts":
        script = "\n".join([program, tests["setup"], *tests["tests"]])
    else:
        script = "\n".join([program, tests["test"], f"check({tests['entry_point']})"])
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run([sys.executable, "-c", script.replace("\r\n", "\n")], cwd=folder, timeout=20,
                                  stdin=subprocess.DEVNULL, capture_output=True)
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0


def graded(aha, lines):
    """The verdict of each line, and how long they took."""
    start = time.perf_counter()
    done = subprocess.run([aha, "grade", "--reward", "code"], check=True, stdout=subprocess.PIPE, text=True,
                          input="".join(json.dumps(line) + "\n" for line in lines))
    return [json.loads(line) for line in done.stdout.splitlines()], time.perf_counter() - start


def check(aha, path):
    rows = parquet.read_table(path).to_pylist()
    tests = [json.loads(row["tests"]) for row in rows]
    programs = [row["prompt"] + row["answer"] if gold["kind"] == "humaneval" else row["answer"].replace("\r\n", "\n")
                for row, gold in zip(rows, tests)]
    lines = [{"id": row["id"], "gold": gold, "pred": row["solution"], "prompt": row["prompt"]}
             for row, gold in zip(rows, tests)]
    verdicts, seconds = graded(aha, lines)
    bad = [verdict for verdict in verdicts if verdict["score"] != 1]
    print(f"{path}: {len(rows) - len(bad)} of {len(rows)} solutions pass, {len(rows) / seconds:.1f} verdicts/s")

    # What a prompt itself defines is no part of the solution: the tests take it from the prompt.
    first_lines = [row["prompt"].count("\n") + 1 if gold["kind"] == "humaneval" else 1
                   for row, gold in zip(rows, tests)]
    changed = [next(mutants(program, line), (None, None)) for program, line in zip(programs, first_lines)]
    lines = [{**line, "pred": f"```python\n{program}\n```"} for line, (_, program) in zip(lines, changed) if program]
    verdicts, seconds = graded(aha, lines)
    kinds = collections.Counter(kind for kind, _ in changed)
    by_id = {row["id"]: (gold, program) for row, gold, (_, program) in zip(rows, tests, changed)}
    passing = [verdict["id"] for verdict in verdicts if verdict["score"] == 1]
    bad += [verdict for verdict in verdicts if verdict["score"] is None]
    unexplained = [name for name in passing if not plain_python_passes(by_id[name][1], by_id[name][0])]
    print(f"  mutants by what was changed: {dict(kinds)}; {len(lines) / seconds:.1f} verdicts/s")
    print(f"  {len(lines) - len(passing)} of {len(lines)} mutants fail; {len(passing) - len(unexplained)} pass in "
          f"plain Python too: {', '.join(name for name in passing if name not in unexplained)}")
    for verdict in bad:
        print(f"  FAILED {verdict}")
    for name in unexplained:
        print(f"  FAILED {name}: a mutant passes that plain Python refuses")
    return not bad and not unexplained


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    results = [check(sys.argv[1], path) for path in sys.argv[2:]]
    sys.exit(0 if all(results) else 1)
