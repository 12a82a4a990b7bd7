import assert from "node:assert/strict";
import { test } from "node:test";
import { blocks, parseBlock } from "../src/api/events";

async function* chunks(...texts: string[]) {
  yield* texts;
}

test("blocks end at empty lines, wherever a stream is cut", async () => {
  const found: string[] = [];
  for await (const block of blocks(chunks(": hi\n\nid: 1\nev", "ent: a\n", "\nid: 2\n\nhal"))) found.push(block);
  assert.deepEqual(found, [": hi", "id: 1\nevent: a", "id: 2"]);
});

test("a block is an event, and a comment is none", () => {
  const found = parseBlock('id: 7\nevent: step\ndata: {"run":3,"data":{"step":1,"text":"a: b"}}');
  assert.deepEqual(found, { id: 7, event: { kind: "step", run: 3, data: { step: 1, text: "a: b" } } });
  assert.equal(parseBlock(": still here"), null);
  assert.equal(parseBlock('event: missed\ndata: {"count":3}')?.id, null);
});
