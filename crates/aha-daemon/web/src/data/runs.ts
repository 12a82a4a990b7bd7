// Runs as they are now: asked once, then kept up with events.
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { type Details, type Run, type Status, get } from "../api/client";
import { type ServerEvent, useEvents, useReconnected } from "../api/events";
import { detailsOf } from "./ask";

/** How long a run is left alone after it was asked for; events come faster than anybody reads. */
const PAUSE_MS = 700;

export const canPause = (status: Status): boolean => status === "queued" || status === "running";
export const canResume = (status: Status): boolean => status === "paused" || status === "failed";
export const isEnd = (status: Status): boolean => ["finished", "failed", "cancelled"].includes(status);
export const hasProcess = (status: Status): boolean => ["running", "pausing", "cancelling"].includes(status);
export const canCancel = (status: Status): boolean => !isEnd(status) && status !== "cancelling";

/** Calls `ask` for each key at most once a pause, and once more if it was wanted meanwhile. */
const usePaced = (ask: (key: number) => Promise<void>): ((key: number) => void) => {
  const latest = useRef(ask);
  latest.current = ask;
  const waiting = useRef(new Map<number, boolean>());
  return useCallback((key: number) => {
    const pending = waiting.current;
    if (pending.has(key)) {
      pending.set(key, true);
      return;
    }
    const work = async (): Promise<void> => {
      pending.set(key, false);
      await latest.current(key);
      setTimeout(() => (pending.get(key) ? void work() : pending.delete(key)), PAUSE_MS);
    };
    void work();
  }, []);
};

/** All runs that there are, in the order of their numbers; an answer has so many at most. */
export const readRuns = async (signal?: AbortSignal): Promise<Run[]> => {
  const all: Run[] = [];
  for (;;) {
    const { runs } = await get("/api/v1/runs", {}, { after: all.at(-1)?.id }, signal);
    if (!runs.length) return all;
    all.push(...runs);
  }
};

/** All runs, the newest first. */
export const useRuns = (): { runs: Run[] | null; problem: Details | null; again: () => void } => {
  const [runs, setRuns] = useState<Map<number, Run> | null>(null);
  const [problem, setProblem] = useState<Details | null>(null);
  const again = useCallback(() => {
    readRuns()
      .then((runs) => {
        setRuns(new Map(runs.map((run) => [run.id, run])));
        setProblem(null);
      })
      .catch((error: unknown) => setProblem(detailsOf(error)));
  }, []);
  useEffect(again, [again]);
  useReconnected(again);
  const refresh = usePaced(async (id) => {
    // One that was removed meanwhile is told of by an event of its own.
    const run = await get("/api/v1/runs/{id}", { id }).catch(() => null);
    if (run) setRuns((runs) => new Map(runs).set(id, run));
  });
  useEvents("/api/v1/events", "now", (event) => {
    if (event.kind === "missed") return again();
    if (event.kind === "usage") return;
    if (event.kind !== "removed") return refresh(event.run);
    setRuns((runs) => {
      const left = new Map(runs);
      left.delete(event.run);
      return left;
    });
  });
  return { runs: runs && [...runs.values()].sort((a, b) => b.id - a.id), problem, again };
};

/** One run, with all that is told of it. */
export const useRun = (
  id: number,
  onEvent: (event: ServerEvent) => void,
): { run: Run | null; problem: Details | null; again: () => void } => {
  const [run, setRun] = useState<Run | null>(null);
  const [problem, setProblem] = useState<Details | null>(null);
  const refresh = usePaced(async () => {
    try {
      setRun(await get("/api/v1/runs/{id}", { id }));
      setProblem(null);
    } catch (error) {
      setProblem(detailsOf(error));
    }
  });
  const again = useCallback(() => refresh(id), [refresh, id]);
  useEffect(again, [again]);
  useReconnected(again);
  useEvents(`/api/v1/runs/${id}/events`, "first", (event) => {
    onEvent(event);
    if (event.kind !== "usage") again();
  });
  return { run, problem, again };
};
