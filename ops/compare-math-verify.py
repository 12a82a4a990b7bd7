#!/usr/bin/env python3
"""Compares our maths verdicts with those of Hugging Face's Math-Verify on the same pairs.

    python ops/compare-math-verify.py --grader target/release/examples/grade-math \\
        --pairs 6000 --seed 1 math500.parquet math.parquet gsm8k.parquet > disagreements.jsonl

Needs `math-verify[antlr4_13_2]` and `pyarrow`; build the grader with
`cargo build --release -p aha-reward --example grade-math`. Pairs are made of the files' gold answers
(column `answer`): respelled, perturbed, of another problem, listed, written as a completion. Standard
error has the agreement table and both throughputs on one core; standard output a line per
disagreement. `--table FILE` adds pairs `gold | pred`, a line each.
"""

import argparse
import json
import logging
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction

import pyarrow.parquet as pq

NUMBER = re.compile(r"-?\d+(\.\d+)?")
FRACTION = re.compile(r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}")


def respelled(gold, rng):
    """The same answer in another spelling, or None."""
    ways = [
        lambda g: g.replace("\\frac", "\\dfrac"),
        lambda g: g.replace("\\dfrac", "\\tfrac"),
        lambda g: g.replace("(", "\\left(").replace(")", "\\right)") if "\\left" not in g else None,
        lambda g: g.replace("\\left", "").replace("\\right", ""),
        lambda g: re.sub(r"\\text\{\s*([^{}]*)\}", r"\\mathrm{\1}", g),
        lambda g: re.sub(r",(?!\\)", ", ", g).replace("+", " + "),
        lambda g: re.sub(r"(?<![a-z]) ", "", g),
        lambda g: g.replace("\\pi", "π"),
        lambda g: g.replace("^\\circ", "^{\\circ}"),
        lambda g: g.replace("^\\circ", " degrees"),
        lambda g: re.sub(r"\\sqrt\{(\d)\}", r"\\sqrt\1", g),
        lambda g: f"x = {g}" if NUMBER.fullmatch(g) else None,
        lambda g: f"{int(g):,}" if re.fullmatch(r"\d{4,}", g) else None,
        lambda g: f"{g}.0" if re.fullmatch(r"-?\d+", g) else None,
        lambda g: f"\\frac{{{3 * int(g)}}}{{3}}" if re.fullmatch(r"-?\d{1,6}", g) else None,
        lambda g: f"\\${g}" if NUMBER.fullmatch(g) and "-" not in g else None,
        lambda g: f"{g} \\text{{ units}}" if NUMBER.fullmatch(g) else None,
        as_decimal,
        as_slash,
        reversed_sum,
        reversed_list,
    ]
    for _ in range(20):
        pred = rng.choice(ways)(gold)
        if pred is not None and pred != gold:
            return pred
    return None


def as_decimal(gold):
    match = FRACTION.fullmatch(gold)
    if not match:
        return None
    value = Fraction(int(match[2]), int(match[3]))
    text = f"{match[1]}{float(value)}"
    return text if "e" not in text else None


def as_slash(gold):
    match = FRACTION.fullmatch(gold)
    return f"{match[1]}{match[2]}/{match[3]}" if match else None


def reversed_sum(gold):
    terms = re.fullmatch(r"([\w\\{}^ ]+)\+([\w\\{}^ ]+)", gold)
    return f"{terms[2]}+{terms[1]}" if terms else None


def reversed_list(gold):
    if re.search(r"[()\[\]{}!]", gold) or gold.count(",") == 0 or re.search(r"\d,\d{3}", gold):
        return None
    return ", ".join(reversed([part.strip() for part in gold.split(",")]))


def perturbed(gold, rng):
    """Another answer that looks like it, or None."""
    numbers = list(re.finditer(r"\d+", gold))
    ways = ["sign", "list", "or", "percent", "swap"]
    if numbers:
        ways += ["digit"] * 4
    way = rng.choice(ways)
    if way == "digit":
        at = rng.choice(numbers)
        return gold[: at.start()] + str(int(at[0]) + rng.choice([1, 2, 10])) + gold[at.end() :]
    if way == "sign":
        return gold[1:] if gold.startswith("-") else f"-{gold}"
    if way == "list":
        return f"{gold}, {rng.randint(100, 999)}"
    if way == "or":
        return f"{gold} \\text{{ or }} {rng.randint(100, 999)}"
    if way == "percent":
        return f"{gold}\\%" if NUMBER.fullmatch(gold) else None
    parts = gold.split(",")
    if len(parts) == 2 and gold.startswith(("(", "\\left(")) and gold.endswith(")"):
        inner = gold.removeprefix("\\left").removeprefix("(").removesuffix(")").removesuffix("\\right")
        first, second = inner.split(",")
        return f"({second.strip()}, {first.strip()})"
    return None


WRAPPERS = [
    "Let me think. First we compute it, then we check.\n\nThe answer is $\\boxed{%s}$.",
    "We get\n\\[ \\boxed{%s} \\]",
    "So $x$ is found. Therefore, the final answer is: $\\boxed{%s}$. I hope it is correct.",
    "It may be \\boxed{17} at first sight, but that forgets a case.\nSo it is $\\boxed{%s}$",
]


def make_pairs(golds, count, rng):
    pairs = []
    while len(pairs) < count:
        gold = rng.choice(golds)
        kind = rng.choices(["same", "respelled", "perturbed", "other"], [2, 5, 5, 2])[0]
        pred = {
            "same": lambda: gold,
            "respelled": lambda: respelled(gold, rng),
            "perturbed": lambda: perturbed(gold, rng),
            "other": lambda: rng.choice(golds),
        }[kind]()
        if pred is not None:
            pairs.append({"gold": gold, "pred": rng.choice(WRAPPERS) % pred, "kind": kind, "bare": pred})
    return pairs


def ours(grader, pairs):
    lines = "".join(json.dumps({"id": i, "gold": p["gold"], "pred": p["pred"]}) + "\n" for i, p in enumerate(pairs))
    start = time.perf_counter()
    done = subprocess.run([grader], input=lines, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    return [json.loads(line)["score"] for line in done.stdout.splitlines()], seconds


def theirs(pairs):
    logging.disable(logging.CRITICAL)
    from math_verify import parse, verify

    # The first call compiles their expressions; it is not timed.
    verify(parse("$1$"), parse("$1$"))
    verdicts = []
    start = time.perf_counter()
    for pair in pairs:
        try:
            verdicts.append(float(verify(parse(f"${pair['gold']}$"), parse(pair["pred"]))))
        except Exception:
            verdicts.append(None)
    return verdicts, time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--grader", required=True)
    parser.add_argument("--pairs", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--table")
    args = parser.parse_args()
    # Both on one core; the grader inherits it.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rng = random.Random(args.seed)
    pairs = []
    for path in args.files:
        golds = sorted(str(a) for a in pq.read_table(path, columns=["answer"])["answer"].to_pylist() if a)
        odd = [gold for gold in golds if not re.fullmatch(r"-?\d+", gold)]
        # Half of them more than a whole number, where there are such.
        pairs += make_pairs(golds, args.pairs // len(args.files) // 2, rng)
        pairs += make_pairs(odd or golds, args.pairs // len(args.files) // 2, rng)
    if args.table:
        for line in open(args.table, encoding="utf-8"):
            gold, _, pred = line.strip().partition(" | ")
            if pred:
                pairs.append({"gold": gold, "pred": f"\\boxed{{{pred}}}", "kind": "table", "bare": pred})
    our, our_seconds = ours(args.grader, pairs)
    their, their_seconds = theirs(pairs)
    table = Counter((p["kind"], o, t) for p, o, t in zip(pairs, our, their, strict=True))
    err = lambda text: print(text, file=sys.stderr)
    err("| kind | ours | Math-Verify | pairs |\n| --- | --- | --- | --- |")
    for (kind, o, t), n in sorted(table.items(), key=str):
        err(f"| {kind} | {o} | {t} | {n} |")
    same = sum(o == t for o, t in zip(our, their, strict=True))
    err(f"{same} of {len(pairs)} agree")
    err(f"ours: {len(pairs) / our_seconds:.0f} pairs/s, start of the process included")
    err(f"Math-Verify: {len(pairs) / their_seconds:.0f} pairs/s; ratio {their_seconds / our_seconds:.0f}")
    for pair, o, t in zip(pairs, our, their, strict=True):
        if o != t:
            row = {"kind": pair["kind"], "gold": pair["gold"], "pred": pair["bare"], "ours": o, "theirs": t}
            print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main()
