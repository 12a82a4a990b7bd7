import assert from "node:assert/strict";
import { test } from "node:test";
import { conditions, groupSql, groupsSql } from "../src/data/sql";
import { spelled } from "../src/ui/parts";

const FILTER = {
  table: 'a"b',
  from: "3",
  to: "",
  contains: "it's",
  rewardMin: "0.5",
  rewardMax: "x",
  finish: "length",
  trained: "no",
  order: "no such order",
};

test("what somebody writes into a filter stays a name, a text or a number", () => {
  assert.deepEqual(conditions(FILTER), {
    ofSteps: ["step >= 3"],
    ofRows: [
      "(strpos(completion, 'it''s') > 0 OR strpos(prompt, 'it''s') > 0)",
      "reward >= 0.5",
      "finish_reason = 'length'",
      "NOT is_trained",
    ],
  });
  const sql = groupsSql(FILTER, 31, 60);
  assert.ok(sql.includes('FROM "a""b" WHERE step >= 3 '), sql);
  assert.ok(sql.endsWith("ORDER BY step DESC, prompt_id LIMIT 31 OFFSET 60"), sql);
  assert.ok(groupSql("zero", ["reward_math"], 2, "'; --").includes("prompt_id = '''; --'"));
});

test("what is hidden in a text is spelled out", () => {
  assert.equal(spelled("a\u202eb\u0007\n<b>\t"), "a\\u{202e}b\\u{7}\n<b>\t");
});
