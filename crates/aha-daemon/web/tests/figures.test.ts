import assert from "node:assert/strict";
import { test } from "node:test";
import { type Curves, merge } from "../src/data/curves";
import { constantOf, figuresOf, kindsOf, measuredOf, titleOfMeasure } from "../src/data/figures";
import { placed } from "../src/views/graph";

const stage = (name: string, kind: string, reads: string[] = []) => ({
  name,
  kind,
  reads,
  step: 0,
  steps: 0,
  is_done: false,
});
const curve = (stage: string, name: string, values = [1, 2]) => ({
  stage,
  name,
  steps: values.map((_, at) => at + 1),
  values,
  per: 1,
});

test("every measure has a figure, and those without a place of their own come last", () => {
  const curves: Curves = new Map();
  const names = ["reward", "reward_math", "source_share_a", "source_share_b", "kl", "sampling_seconds", "of_later"];
  merge(
    curves,
    names.map((name) => curve("zero", name)),
  );
  const measured = measuredOf([stage("base", "sft"), stage("zero", "rl")], curves);
  const figures = figuresOf("rl", measured).flatMap((group) => group.figures);
  assert.deepEqual(
    figures.map(({ title }) => title),
    ["Reward", "Reward: math", "KL to the reference", "Prompts by source", "Time of a step", "of_later"],
  );
  const sources = figures.find(({ title }) => title === "Prompts by source");
  assert.deepEqual(
    sources?.lines.map(({ name }) => name),
    ["a", "b"],
  );
});

test("kinds have their order, and a line that never changes is told in words", () => {
  const curves: Curves = new Map();
  merge(curves, [curve("base", "lr", [3, 3]), curve("zero", "kl")]);
  const measured = measuredOf([stage("base", "sft"), stage("zero", "rl")], curves);
  assert.deepEqual(kindsOf(measured), ["rl", "sft"]);
  const [figure] = figuresOf("sft", measured.slice(0, 1)).flatMap(({ figures }) => figures);
  assert.equal(figure && constantOf(figure), 3);
});

test("a measure has the title that it has in a run", () => {
  assert.equal(titleOfMeasure("clip_low_share").title, "Clipped tokens: below");
  assert.equal(titleOfMeasure("reward_format").title, "Reward: format");
  assert.equal(titleOfMeasure("of_later").title, "of_later");
});

test("a stage stands right of all that it reads", () => {
  const stages = [
    stage("base", "sft"),
    stage("student", "sft"),
    stage("zero", "rl", ["base"]),
    stage("scores", "eval", ["base", "zero", "student"]),
  ];
  const places = placed(stages).map(({ column, row }) => [column, row]);
  assert.deepEqual(places, [
    [0, 0],
    [0, 1],
    [1, 0],
    [2, 0],
  ]);
});
