// The list of runs.
import { useEffect, useState } from "preact/hooks";
import { duration, grouped, measure, percent, plural } from "report:numbers.js";
import { type Run, type Status, get } from "../api/client";
import { useAsked } from "../data/ask";
import { hasProcess, isEnd, useRuns } from "../data/runs";
import { link } from "../router";
import { Actions } from "../ui/actions";
import { Empty, Loading, Meter, Problem, StatusChip, Text, Tile, bytes } from "../ui/parts";

/** Measures that say most of a run, the first ones that it has. */
const TELLING: [string, string, boolean][] = [
  ["reward", "reward", false],
  ["accuracy", "accuracy", true],
  ["loss", "loss", false],
  ["tokens_per_second", "tokens/s", false],
];

/** How far a run is, over all of its stages. */
export const shareOf = ({ progress }: Run): number => {
  const stages = progress?.stages ?? [];
  const done = stages.map(({ is_done, step, steps }) => (is_done ? 1 : steps ? step / steps : 0));
  return stages.length ? done.reduce((sum, x) => sum + x, 0) / stages.length : 0;
};

export const stageOf = ({ progress }: Run) => progress?.stages?.find(({ name }) => name === progress.stage);

const whereOf = (run: Run): string => {
  const stage = stageOf(run);
  if (run.status === "finished") return plural(run.progress?.stages?.length ?? 0, "stage");
  if (!stage) return "not begun";
  const of = stage.steps ? ` of ${grouped(stage.steps)}` : "";
  return `${stage.name}${stage.step ? `, step ${grouped(stage.step)}${of}` : ""}`;
};

const tookOf = (run: Run, now: number): string => {
  const from = run.started_at_us;
  if (!from) return "";
  const to = isEnd(run.status) ? run.ended_at_us : hasProcess(run.status) ? now * 1000 : null;
  return to && to > from ? duration(to - from) : "";
};

/** The time, which goes on while a component is shown. */
export const useNow = (): number => {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), 1000);
    return () => clearInterval(timer);
  }, []);
  return now;
};

export const RunsView = () => {
  const { runs, problem, again } = useRuns();
  const usage = useAsked(
    (signal) => get("/api/v1/usage", {}, undefined, signal),
    [runs?.filter((r) => hasProcess(r.status)).length],
  );
  const [chosen, setChosen] = useState<ReadonlySet<number>>(new Set());
  const toggle = (id: number) => {
    const next = new Set(chosen);
    if (!next.delete(id)) next.add(id);
    setChosen(next);
  };
  const count = (...of: Status[]) => (runs ?? []).filter(({ status }) => of.includes(status)).length;
  const memory = usage.value;
  return (
    <main id="main" tabIndex={-1}>
      <div class="headline">
        <h1>Runs</h1>
        <div class="buttons">
          {chosen.size > 1 ? (
            <a class="button" href={link(["compare"], { runs: [...chosen].sort((a, b) => a - b).join(",") })}>
              Compare {chosen.size} runs
            </a>
          ) : (
            <span class="soft small">choose two or more to compare them</span>
          )}
          <a class="button primary" href={link(["submit"])}>
            Submit a run
          </a>
        </div>
      </div>
      {problem ? <Problem details={problem} again={again} /> : null}
      {runs ? (
        <div class="tiles">
          <Tile
            name="Running"
            figure={grouped(count("running", "pausing", "cancelling"))}
            unit={memory ? `of at most ${memory.runs_max}` : ""}
            note={`${count("queued")} in the queue, ${count("paused")} paused`}
          />
          <Tile
            name="Ended"
            figure={grouped(count("finished"))}
            unit="finished"
            note={`${count("failed")} failed, ${count("cancelled")} cancelled`}
          />
          {memory ? (
            <Tile
              name="Memory promised"
              figure={bytes(memory.runs_bytes + memory.models_bytes)}
              unit={`of ${bytes(memory.budget_bytes)}`}
              note={
                <Meter
                  label="Memory promised to runs and models"
                  share={(memory.runs_bytes + memory.models_bytes) / memory.budget_bytes}
                  text={`${bytes(memory.runs_bytes)} to runs, ${bytes(memory.models_bytes)} to models`}
                />
              }
            />
          ) : null}
        </div>
      ) : null}
      {!runs && !problem ? <Loading what="runs" /> : null}
      {runs?.length === 0 ? (
        <Empty>
          <p>No run yet.</p>
          <p>
            <a href={link(["submit"])}>Paste a pipeline</a>, or submit one from a terminal:{" "}
            <code>aha submit pipelines/quickstart.toml</code>
          </p>
        </Empty>
      ) : null}
      {runs?.length ? <RunsTable runs={runs} chosen={chosen} toggle={toggle} /> : null}
    </main>
  );
};

const RunsTable = (props: { runs: Run[]; chosen: ReadonlySet<number>; toggle: (id: number) => void }) => {
  const now = useNow();
  return (
    <div class="card scroll runs">
      <table>
        <caption class="hidden">All runs, the newest first</caption>
        <thead>
          <tr>
            <th scope="col">
              <span class="hidden">Compare</span>
            </th>
            <th scope="col" class="n">
              #
            </th>
            <th scope="col">Run</th>
            <th scope="col">State</th>
            <th scope="col">Progress</th>
            <th scope="col" class="wide">
              Newest measures
            </th>
            <th scope="col" class="n wide">
              Memory
            </th>
            <th scope="col" class="n wide">
              Time
            </th>
            <th scope="col">Actions</th>
          </tr>
        </thead>
        <tbody>
          {props.runs.map((run) => (
            <RunRow key={run.id} run={run} now={now} isChosen={props.chosen.has(run.id)} toggle={props.toggle} />
          ))}
        </tbody>
      </table>
    </div>
  );
};

const RunRow = (props: { run: Run; now: number; isChosen: boolean; toggle: (id: number) => void }) => {
  const { run } = props;
  const share = run.status === "finished" ? 1 : shareOf(run);
  return (
    <tr>
      <td>
        <input
          type="checkbox"
          aria-label={`Compare run ${run.id}, ${run.name}`}
          checked={props.isChosen}
          onChange={() => props.toggle(run.id)}
        />
      </td>
      <td class="n soft">{run.id}</td>
      <th scope="row">
        <a href={link(["runs", run.id])}>
          <Text>{run.name}</Text>
        </a>
        {run.problem ? (
          <span class="about bad">
            <Text>{run.problem.message}</Text>
          </span>
        ) : null}
      </th>
      <td>
        <StatusChip status={run.status} />
      </td>
      <td class="progress">
        <Meter label={`Progress of run ${run.id}`} share={share} text={`${percent(share)} %, ${whereOf(run)}`} />
        <span class="soft small">
          <Text>{whereOf(run)}</Text>
        </span>
      </td>
      <td class="wide">
        <Measures run={run} />
      </td>
      <td class="n wide">{bytes(run.memory_bytes)}</td>
      <td class="n wide">{tookOf(run, props.now)}</td>
      <td>
        <Actions run={run} />
      </td>
    </tr>
  );
};

const Measures = ({ run }: { run: Run }) => {
  const metrics = run.progress?.metrics ?? {};
  const known = TELLING.flatMap(([key, label, isShare]) => {
    const x = metrics[key];
    return x === undefined ? [] : [[label, isShare ? `${percent(x)} %` : measure(x)] as const];
  });
  return (
    <span class="measures">
      {known.map(([label, figure]) => (
        <span key={label}>
          <b>{figure}</b> <span class="soft">{label}</span>
        </span>
      ))}
    </span>
  );
};
