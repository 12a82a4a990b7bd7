// What a run has measured: what is on the disk, and behind that what events tell.
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { value } from "report:numbers.js";
import { type Curve, get } from "../api/client";
import { type ServerEvent, useReconnected } from "../api/events";

export interface Series {
  steps: number[];
  values: number[];
  /** Steps that a value is the mean of. */
  per: number;
  doc: string;
}

/** Measures by stage and name. */
export type Curves = Map<string, Map<string, Series>>;

/** How long figures rest after they were drawn; steps may come faster than anybody reads. */
const PAUSE_MS = 400;

const seriesOf = (curves: Curves, stage: string, name: string): Series => {
  const ofStage = curves.get(stage) ?? new Map<string, Series>();
  curves.set(stage, ofStage);
  const series = ofStage.get(name) ?? { steps: [], values: [], per: 1, doc: "" };
  ofStage.set(name, series);
  return series;
};

/** Takes in what is on the disk; newer points that events have told stay. */
export const merge = (curves: Curves, read: Curve[]): void => {
  for (const { stage, name, doc, steps, values, per } of read) {
    const series = seriesOf(curves, stage, name);
    const last = steps.at(-1) ?? 0;
    const newer = series.steps.findIndex((step) => step > last);
    const tail = newer < 0 ? series.steps.length : newer;
    series.steps = [...steps, ...series.steps.slice(tail)];
    series.values = [...values.map((x) => x ?? NaN), ...series.values.slice(tail)];
    series.per = per;
    series.doc = doc ?? "";
  }
};

/** Takes in an event; says whether something has changed. */
export const follow = (curves: Curves, { kind, data }: ServerEvent): boolean => {
  const [stage, step] = [String(data["stage"]), Number(data["step"])];
  if (kind === "stage_started") {
    // From a checkpoint on it makes the steps behind it again.
    for (const series of curves.get(stage)?.values() ?? []) {
      const kept = series.steps.filter((known) => known <= step).length;
      series.steps.length = kept;
      series.values.length = kept;
    }
    return true;
  }
  if (kind !== "step") return false;
  for (const [name, x] of Object.entries((data["metrics"] ?? {}) as Record<string, unknown>)) {
    const series = seriesOf(curves, stage, name);
    if (step <= (series.steps.at(-1) ?? 0)) continue;
    series.steps.push(step);
    series.values.push(value(x));
  }
  return true;
};

/** The measures of a run. `version` grows with every change; `onEvent` takes what the run's events tell. */
export const useCurves = (id: number): { curves: Curves; version: number; onEvent: (event: ServerEvent) => void } => {
  const curves = useRef<Curves>(new Map());
  const [version, setVersion] = useState(0);
  const timer = useRef(0);
  const changed = useCallback(() => {
    if (timer.current) return;
    timer.current = setTimeout(() => {
      timer.current = 0;
      setVersion((version) => version + 1);
    }, PAUSE_MS);
  }, []);
  const load = useCallback(() => {
    get("/api/v1/runs/{id}/curves", { id })
      .then((read) => {
        merge(curves.current, read.curves);
        changed();
      })
      // A run without a directory has none; events tell when that is another matter.
      .catch(() => undefined);
  }, [id, changed]);
  useEffect(() => {
    curves.current = new Map();
    changed();
    load();
  }, [id, load, changed]);
  useReconnected(load);
  const onEvent = useCallback(
    (event: ServerEvent) => {
      if (follow(curves.current, event)) changed();
      if (event.kind === "stage_done" || event.kind === "missed") load();
    },
    [load, changed],
  );
  return { curves: curves.current, version, onEvent };
};
