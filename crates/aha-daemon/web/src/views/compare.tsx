// Several runs, the same measure of each in one figure.
import { useCallback, useEffect, useMemo, useRef, useState } from "preact/hooks";
import { type Curve, type Run, get } from "../api/client";
import { useEvents } from "../api/events";
import { useAsked } from "../data/ask";
import { type Line, titleOfMeasure } from "../data/figures";
import { readRuns } from "../data/runs";
import { type Place, link, replace } from "../router";
import { Chart } from "../ui/chart";
import { Empty, Loading, Problem, StatusChip, Text } from "../ui/parts";
import { ConsoleView } from "./console";

/** Measures that are shown at first, as far as there are such. */
const FIRST = ["reward", "accuracy", "completion_len_tokens", "kl", "entropy", "loss"];
const SHOWN = 4;
const SMOOTHING = 25;
/** How long figures rest after they were drawn, while runs go on. */
const PAUSE_MS = 5000;

interface Compared {
  run: Run;
  curves: Curve[];
}

const idsOf = (place: Place): number[] =>
  (place.query.get("runs") ?? "")
    .split(",")
    .map(Number)
    .filter((id) => Number.isInteger(id) && id > 0);

const read = (ids: number[], signal: AbortSignal): Promise<Compared[]> =>
  Promise.all(
    ids.map(async (id) => {
      const [run, { curves }] = await Promise.all([
        get("/api/v1/runs/{id}", { id }, undefined, signal),
        get("/api/v1/runs/{id}/curves", { id }, undefined, signal),
      ]);
      return { run, curves };
    }),
  );

export const CompareView = ({ place }: { place: Place }) => {
  const ids = idsOf(place);
  const all = useAsked(readRuns, []);
  const asked = useAsked((signal) => read(ids, signal), [ids.join(",")]);
  const pending = useRef(false);
  const soon = useCallback(() => {
    if (pending.current) return;
    pending.current = true;
    setTimeout(() => {
      pending.current = false;
      asked.again();
    }, PAUSE_MS);
  }, [asked.again]);
  useEvents("/api/v1/events", "now", ({ kind, run }) => {
    if (["step", "state", "stage_done"].includes(kind) && ids.includes(run)) soon();
  });
  const choose = (ids: number[]) => replace(link(["compare"], { runs: ids.join(",") }));
  const toggle = (id: number) =>
    choose(ids.includes(id) ? ids.filter((one) => one !== id) : [...ids, id].sort((a, b) => a - b));
  return (
    <main id="main" tabIndex={-1}>
      <h1>Compare runs</h1>
      <p class="lead">The same measure of each run in one figure, by step.</p>
      {all.problem ? <Problem details={all.problem} again={all.again} /> : null}
      <fieldset class="chooser">
        <legend>Runs</legend>
        {(all.value ?? []).map((run) => (
          <label key={run.id} class="choice">
            <input type="checkbox" checked={ids.includes(run.id)} onChange={() => toggle(run.id)} />
            <span>
              {run.id} <Text>{run.name}</Text>
            </span>
            <StatusChip status={run.status} />
          </label>
        ))}
      </fieldset>
      {asked.problem ? <Problem details={asked.problem} again={asked.again} /> : null}
      {!asked.value && asked.isLoading ? <Loading what="curves" /> : null}
      {ids.length && asked.value ? <Figures compared={asked.value} /> : null}
      {ids.length ? (
        <details class="more">
          <summary>
            SQL over these runs: each table has a column <code>run</code>
          </summary>
          <ConsoleView key={ids.join(",")} runs={ids} />
        </details>
      ) : (
        <Empty>Choose the runs to compare.</Empty>
      )}
    </main>
  );
};

/** Names of measures, those first that say most. */
const namesOf = (compared: Compared[]): string[] => {
  const names = new Set(compared.flatMap(({ curves }) => curves.map(({ name }) => name)));
  const first = FIRST.filter((name) => names.has(name));
  return [...first, ...[...names].filter((name) => !first.includes(name)).sort()];
};

const linesOf = (compared: Compared[], name: string, stage: string): Line[] => {
  const found = compared.flatMap(({ run, curves }) =>
    curves.filter((curve) => curve.name === name && (!stage || curve.stage === stage)).map((curve) => ({ run, curve })),
  );
  const isSeveral = new Set(found.map(({ curve }) => curve.stage)).size > 1;
  return found.map(({ run, curve }, at) => ({
    name: `${run.id} ${run.name}`,
    label: isSeveral ? curve.stage : "",
    hue: at % 10,
    isDashed: at >= 10,
    steps: curve.steps,
    values: curve.values.map((x) => x ?? NaN),
  }));
};

const Figures = ({ compared }: { compared: Compared[] }) => {
  const names = useMemo(() => namesOf(compared), [compared]);
  const stages = [...new Set(compared.flatMap(({ curves }) => curves.map(({ stage }) => stage)))];
  const [chosen, setChosen] = useState<string[] | null>(null);
  const [stage, setStage] = useState("");
  const [smoothing, setSmoothing] = useState(SMOOTHING);
  useEffect(() => setStage((stage) => (stages.includes(stage) ? stage : "")), [stages.join(" ")]);
  const shown = chosen ?? names.slice(0, SHOWN);
  const toggle = (name: string) =>
    setChosen(shown.includes(name) ? shown.filter((one) => one !== name) : [...shown, name]);
  if (!names.length) return <Empty>None of these runs has measured anything that is on the disk yet.</Empty>;
  return (
    <section aria-label="Figures">
      <div class="controls">
        <details class="measures">
          <summary>Measures</summary>
          <div class="card options">
            {names.map((name) => (
              <label key={name}>
                <input type="checkbox" checked={shown.includes(name)} onChange={() => toggle(name)} />{" "}
                {titleOfMeasure(name).title} <code class="soft">{name}</code>
              </label>
            ))}
          </div>
        </details>
        <label class="picker">
          Stage{" "}
          <select value={stage} onChange={(event) => setStage(event.currentTarget.value)}>
            <option value="">all</option>
            {stages.map((name) => (
              <option key={name}>{name}</option>
            ))}
          </select>
        </label>
        <span class="gap" />
        <label class="soft">
          Smoothing{" "}
          <input
            type="range"
            min={0}
            max={100}
            value={smoothing}
            onInput={(event) => setSmoothing(Number(event.currentTarget.value))}
          />
        </label>
      </div>
      <div class="grid hero">
        {shown.map((name) => (
          <Chart
            key={name}
            {...titleOfMeasure(name)}
            lines={linesOf(compared, name, stage)}
            smoothing={smoothing}
            syncKey="compare"
            isHero
            hasKeys
          />
        ))}
      </div>
    </section>
  );
};
