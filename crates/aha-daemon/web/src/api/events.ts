// Server-sent events, read with `fetch`: an `EventSource` can't send a token.
import { useEffect, useRef } from "preact/hooks";
import { Store } from "../store";
import { ask } from "./client";

export interface ServerEvent {
  kind: string;
  run: number;
  data: Record<string, unknown>;
}

export type Connection = "connecting" | "live" | "lost";

/** Whether events are coming in. */
export const connection = new Store<Connection>("connecting");

const PAUSE_MS = 500;
const PAUSE_MS_MAX = 15_000;

/** Splits a stream of text into its blocks, which empty lines end. */
export async function* blocks(chunks: AsyncIterable<string>): AsyncGenerator<string> {
  let rest = "";
  for await (const chunk of chunks) {
    const parts = (rest + chunk).split("\n\n");
    rest = parts.pop() ?? "";
    yield* parts;
  }
}

/** The text of an answer, as it comes. */
export async function* textOf(response: Response): AsyncGenerator<string> {
  if (!response.body) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

/** An event, with its number where it has one; none of a block that is a comment. */
export const parseBlock = (block: string): { id: number | null; event: ServerEvent } | null => {
  const fields = new Map<string, string>();
  for (const line of block.split("\n")) {
    const at = line.indexOf(": ");
    if (at > 0) fields.set(line.slice(0, at), line.slice(at + 2));
  }
  const [kind, text, id] = [fields.get("event"), fields.get("data"), fields.get("id")];
  if (!kind || !text) return null;
  const { run, data } = JSON.parse(text) as { run?: number; data?: Record<string, unknown> };
  return { id: id === undefined ? null : Number(id), event: { kind, run: run ?? 0, data: data ?? {} } };
};

/** Hands on events until it is stopped; goes on behind the last one where the connection breaks. */
const follow = async (
  url: string,
  after: number | null,
  onEvent: (event: ServerEvent) => void,
  signal: AbortSignal,
): Promise<void> => {
  let last = after;
  let pause = PAUSE_MS;
  while (!signal.aborted) {
    try {
      const headers: HeadersInit = last === null ? {} : { "Last-Event-ID": String(last) };
      const response = await ask(url, { headers, signal });
      connection.set("live");
      pause = PAUSE_MS;
      for await (const block of blocks(textOf(response))) {
        const found = parseBlock(block);
        if (!found) continue;
        last = found.id ?? last;
        onEvent(found.event);
      }
    } catch {
      // Whatever broke it, it is tried again.
    }
    if (signal.aborted) return;
    connection.set("lost");
    await new Promise((resolve) => setTimeout(resolve, pause));
    pause = Math.min(2 * pause, PAUSE_MS_MAX);
  }
};

/** Follows events while a component is shown, from the first that is kept or from now on. */
export const useEvents = (url: string, from: "first" | "now", onEvent: (event: ServerEvent) => void): void => {
  const handler = useRef(onEvent);
  handler.current = onEvent;
  useEffect(() => {
    const stop = new AbortController();
    void follow(url, from === "first" ? 0 : null, (event) => handler.current(event), stop.signal);
    return () => {
      stop.abort();
      connection.set("connecting");
    };
  }, [url, from]);
};

/** Asks once more when the connection for events is back: some may have been missed. */
export const useReconnected = (again: () => void): void => {
  useEffect(() => {
    let wasLost = false;
    return connection.follow(() => {
      if (connection.value === "live" && wasLost) again();
      wasLost = connection.value === "lost";
    });
  }, [again]);
};
