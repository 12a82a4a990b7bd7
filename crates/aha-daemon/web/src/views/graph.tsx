// The stages of a run as a graph: what reads whom, and how far each is.
import type { Run, StageProgress } from "../api/client";
import { grouped } from "report:numbers.js";
import { hasProcess } from "../data/runs";
import { Meter, Text, kindName } from "../ui/parts";

const WIDTH = 152;
const HEIGHT = 62;
const GAP_X = 30;
const GAP_Y = 14;

type State = "done" | "running" | "waiting" | "stopped";

export interface Placed {
  stage: StageProgress;
  column: number;
  row: number;
}

/** Each stage stands right of all that it reads. */
export const placed = (stages: StageProgress[]): Placed[] => {
  const columns = new Map<string, number>();
  const rows: number[] = [];
  return stages.map((stage) => {
    const before = (stage.reads ?? []).map((name) => columns.get(name) ?? -1);
    const column = Math.max(-1, ...before) + 1;
    columns.set(stage.name, column);
    const row = rows[column] ?? 0;
    rows[column] = row + 1;
    return { stage, column, row };
  });
};

const x = ({ column }: Placed): number => column * (WIDTH + GAP_X);
const y = ({ row }: Placed): number => row * (HEIGHT + GAP_Y);

const stateOf = (run: Run, stage: StageProgress): State => {
  if (stage.is_done || run.status === "finished") return "done";
  if (run.progress?.stage !== stage.name) return "waiting";
  return hasProcess(run.status) ? "running" : "stopped";
};

const MARKS: Record<State, string> = { done: "✓", running: "▶", waiting: "○", stopped: "❚❚" };

export const Graph = ({ run }: { run: Run }) => {
  const all = placed(run.progress?.stages ?? []);
  const byName = new Map(all.map((of) => [of.stage.name, of]));
  const width = Math.max(0, ...all.map((of) => x(of) + WIDTH));
  const height = Math.max(0, ...all.map((of) => y(of) + HEIGHT));
  const edges = all.flatMap((to) =>
    (to.stage.reads ?? []).flatMap((name) => {
      const from = byName.get(name);
      return from ? [{ from, to }] : [];
    }),
  );
  return (
    <div class="graph card" tabIndex={0} role="group" aria-label="Stages, from left to right">
      <div class="canvas" style={{ width: `${width}px`, height: `${height}px` }}>
        <svg width={width} height={height} aria-hidden="true">
          {edges.map(({ from, to }) => {
            const [x0, y0] = [x(from) + WIDTH, y(from) + HEIGHT / 2];
            const [x1, y1] = [x(to), y(to) + HEIGHT / 2];
            const bend = Math.max(20, (x1 - x0) / 2);
            const d = `M${x0} ${y0}C${x0 + bend} ${y0} ${x1 - bend} ${y1} ${x1} ${y1}`;
            return <path key={`${from.stage.name} ${to.stage.name}`} class={`edge ${stateOf(run, to.stage)}`} d={d} />;
          })}
        </svg>
        <ol>
          {all.map((of) => (
            <Node key={of.stage.name} of={of} state={stateOf(run, of.stage)} />
          ))}
        </ol>
      </div>
    </div>
  );
};

const Node = ({ of, state }: { of: Placed; state: State }) => {
  const { name, kind, step, steps, reads = [] } = of.stage;
  const at = steps ? `${grouped(step)} of ${grouped(steps)}` : step ? `step ${grouped(step)}` : "";
  return (
    <li
      class={`node ${state}`}
      style={{ left: `${x(of)}px`, top: `${y(of)}px`, width: `${WIDTH}px`, height: `${HEIGHT}px` }}
    >
      <div class="name">
        <span aria-hidden="true" class="mark">
          {MARKS[state]}
        </span>
        <b>
          <Text>{name}</Text>
        </b>
      </div>
      <div class="soft small">
        {kindName(kind)}, {state === "running" || state === "stopped" ? at || state : state}
        <span class="hidden">
          , {state}
          {reads.length ? `, reads ${reads.join(", ")}` : ""}
        </span>
      </div>
      {steps && state !== "waiting" ? (
        <Meter label={`Steps of ${name}`} share={state === "done" ? 1 : step / steps} text={at} />
      ) : null}
    </li>
  );
};
