import assert from "node:assert/strict";
import { test } from "node:test";
import { type Curves, follow, merge } from "../src/data/curves";

const step = (n: number, metrics: Record<string, unknown>) => ({
  kind: "step",
  run: 1,
  data: { stage: "zero", step: n, metrics },
});
const curve = (steps: number[], values: (number | null)[]) => ({
  stage: "zero",
  name: "kl",
  doc: "what it is",
  steps,
  values,
  per: 1,
});
const kl = (curves: Curves) => curves.get("zero")?.get("kl");

test("what events tell comes behind what is on the disk, once", () => {
  const curves: Curves = new Map();
  follow(curves, step(2, { kl: 0.2 }));
  follow(curves, step(3, { kl: "NaN" }));
  merge(curves, [curve([1, 2], [0.1, null])]);
  follow(curves, step(3, { kl: 9 }));
  assert.deepEqual(kl(curves)?.steps, [1, 2, 3]);
  assert.deepEqual(kl(curves)?.values, [0.1, NaN, NaN]);
  assert.equal(kl(curves)?.doc, "what it is");
});

test("a stage that goes on from a checkpoint makes later steps again", () => {
  const curves: Curves = new Map();
  for (const n of [1, 2, 3]) follow(curves, step(n, { kl: n }));
  follow(curves, { kind: "stage_started", run: 1, data: { stage: "zero", step: 1 } });
  follow(curves, step(2, { kl: 7 }));
  assert.deepEqual(kl(curves)?.values, [1, 7]);
  assert.equal(follow(curves, { kind: "usage", run: 1, data: {} }), false);
});
