// One run: its state, its stages, and a view of each thing that it writes.
import { useCallback, useState } from "preact/hooks";
import { duration, grouped, measure, moment, percent } from "report:numbers.js";
import type { ActorQueue, Run, Sample } from "../api/client";
import type { ServerEvent } from "../api/events";
import { useCurves } from "../data/curves";
import { hasProcess, useRun } from "../data/runs";
import { type Place, go, link } from "../router";
import { Actions } from "../ui/actions";
import { Loading, Meter, Problem, StatusChip, Text, Tile, bytes } from "../ui/parts";
import { ChartsView, type Queues } from "./charts";
import { ConsoleView } from "./console";
import { FilesView } from "./files";
import { Graph } from "./graph";
import { LogsView } from "./logs";
import { RolloutsView } from "./rollouts";
import { shareOf, stageOf, useNow } from "./runs";

const TABS = [
  ["overview", "Overview"],
  ["rollouts", "Rollouts"],
  ["sql", "SQL"],
  ["logs", "Logs"],
  ["files", "Pipeline and files"],
] as const;

/** Looks of actors that are kept for the chart of their queues. */
const QUEUES_MAX = 900;
const SAMPLES_MAX = 900;

interface Warning {
  stage: string;
  message: string;
  hint: string;
  count: number;
}

/** What events tell beside measures: samples of the process, queues of actors, warnings. */
const useTold = () => {
  const [samples, setSamples] = useState<Sample[]>([]);
  const [queues, setQueues] = useState<Queues[]>([]);
  const [warnings, setWarnings] = useState<Warning[]>([]);
  const onEvent = useCallback(({ kind, data }: ServerEvent) => {
    if (kind === "usage") setSamples((all) => [...all, data as unknown as Sample].slice(-SAMPLES_MAX));
    if (kind === "actors") {
      const actors = data["actors"] as ActorQueue[];
      setQueues((all) => [...all, { at: Date.now() / 1000, actors }].slice(-QUEUES_MAX));
    }
    if (kind === "warning") {
      const { stage, message, hint } = data as unknown as Warning;
      setWarnings((all) => {
        const known = all.find((one) => one.stage === stage && one.hint === hint);
        const others = all.filter((one) => one !== known);
        return [...others, { stage, message, hint, count: (known?.count ?? 0) + 1 }];
      });
    }
  }, []);
  return { samples, queues, warnings, onEvent };
};

export const RunView = ({ id, tab, place }: { id: number; tab: string; place: Place }) => {
  const { curves, version, onEvent: onMeasure } = useCurves(id);
  const told = useTold();
  const { run, problem, again } = useRun(id, (event) => {
    onMeasure(event);
    told.onEvent(event);
  });
  if (!run) {
    return (
      <main id="main" tabIndex={-1}>
        {problem ? <Problem details={problem} again={again} /> : <Loading what={`run ${id}`} />}
      </main>
    );
  }
  return (
    <main id="main" tabIndex={-1}>
      <Head run={run} />
      {problem ? <Problem details={problem} again={again} /> : null}
      {run.problem ? <Trouble run={run} /> : null}
      <nav class="tabs" aria-label={`Views of run ${id}`}>
        {TABS.map(([name, label]) => (
          <a key={name} href={link(["runs", id, name])} aria-current={name === tab ? "page" : undefined}>
            {label}
          </a>
        ))}
      </nav>
      {tab === "overview" ? (
        <>
          <Tiles run={run} />
          <Graph run={run} />
          {told.warnings.length ? <Warnings warnings={told.warnings} /> : null}
          <ChartsView run={run} curves={curves} version={version} samples={told.samples} queues={told.queues} />
        </>
      ) : null}
      {tab === "rollouts" ? <RolloutsView run={run} place={place} /> : null}
      {tab === "sql" ? <ConsoleView runs={[id]} /> : null}
      {tab === "logs" ? <LogsView run={run} /> : null}
      {tab === "files" ? <FilesView run={run} /> : null}
    </main>
  );
};

const Head = ({ run }: { run: Run }) => (
  <>
    <div class="headline">
      <h1>
        <Text>{run.name}</Text>
      </h1>
      <Actions run={run} after={(what) => what === "delete" && go(link([]))} />
    </div>
    <p class="lead">
      <StatusChip status={run.status} /> run {run.id} · submitted {moment(run.submitted_at_us)}
      {run.starts && run.starts > 1 ? ` · started ${run.starts} times` : ""}
      {run.sets?.length ? (
        <>
          {" · "}
          <Text class="mono">{run.sets.join("  ")}</Text>
        </>
      ) : null}
    </p>
  </>
);

const Trouble = ({ run }: { run: Run }) => {
  const { message = "", hint } = run.problem ?? {};
  return (
    <div class="problem">
      <p class="what">
        <Text>{message}</Text>
      </p>
      {hint ? (
        <p class="hint">
          <b>hint:</b> <Text>{hint}</Text>
        </p>
      ) : null}
      {run.status === "queued" && run.not_before_us ? <p class="hint">It is tried again soon.</p> : null}
    </div>
  );
};

const Warnings = ({ warnings }: { warnings: Warning[] }) => (
  <details class="warnings">
    <summary>{warnings.length === 1 ? "1 warning" : `${grouped(warnings.length)} warnings`}</summary>
    <ul>
      {warnings.map((one) => (
        <li key={`${one.stage} ${one.hint}`}>
          <b>
            <Text>{one.stage}</Text>
          </b>{" "}
          <Text>{one.message}</Text>
          {one.count > 1 ? ` (${one.count} times)` : ""}
          <div class="soft">
            hint: <Text>{one.hint}</Text>
          </div>
        </li>
      ))}
    </ul>
  </details>
);

/** Measures of the newest step, as tiles. */
const MEASURES: { key: string; name: string; unit: string; isShare?: boolean }[] = [
  { key: "reward", name: "Reward", unit: "" },
  { key: "accuracy", name: "Accuracy", unit: "%", isShare: true },
  { key: "loss", name: "Loss", unit: "" },
  { key: "completion_len_tokens", name: "Response length", unit: "tokens" },
  { key: "tokens_per_second", name: "Speed", unit: "tokens/s" },
];

const Tiles = ({ run }: { run: Run }) => {
  const now = useNow();
  const metrics = run.progress?.metrics ?? {};
  const stage = stageOf(run);
  const share = run.status === "finished" ? 1 : shareOf(run);
  const isSaying = (key: string) => metrics[key] !== undefined && !(key === "loss" && metrics["reward"] !== undefined);
  const from = run.started_at_us ?? 0;
  const to = hasProcess(run.status) ? now * 1000 : (run.ended_at_us ?? 0);
  const steps = stage?.steps ? ` of ${grouped(stage.steps)}` : "";
  return (
    <div class="tiles many">
      <Tile
        name="Progress"
        figure={percent(share)}
        unit="%"
        note={
          <>
            <Meter label="Progress" share={share} text={`${percent(share)} %`} />
            {stage && run.status !== "finished" ? `${stage.name}, step ${grouped(stage.step)}${steps}` : ""}
          </>
        }
      />
      {MEASURES.filter(({ key }) => isSaying(key)).map(({ key, name, unit, isShare }) => {
        const x = metrics[key] ?? NaN;
        return <Tile key={key} name={name} figure={isShare ? percent(x) : measure(x)} unit={unit} note="newest step" />;
      })}
      <Tile name="Memory" figure={bytes(run.memory_bytes)} note="predicted at its peak" />
      {from && to > from ? <Tile name="Time" figure={duration(to - from)} note="since it was last started" /> : null}
    </div>
  );
};
