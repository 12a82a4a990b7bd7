// What a run measures, in figures that go on while it does.
import { useMemo, useState } from "preact/hooks";
import { measure, percent } from "report:numbers.js";
import { type ActorQueue, type Run, type Sample, get } from "../api/client";
import { useAsked } from "../data/ask";
import type { Curves } from "../data/curves";
import {
  type FigureGroup,
  type FigureSpec,
  KIND_NAMES,
  type Line,
  type Measured,
  constantOf,
  figuresOf,
  kindsOf,
  measuredOf,
} from "../data/figures";
import { hasProcess } from "../data/runs";
import { Chart } from "../ui/chart";
import { Empty, Meter, Section, bytes } from "../ui/parts";

/** What was told of actors, at a time. */
export interface Queues {
  at: number;
  actors: ActorQueue[];
}

interface Props {
  run: Run;
  curves: Curves;
  version: number;
  /** Samples that events have told. */
  samples: Sample[];
  queues: Queues[];
}

const SMOOTHING = 25;

export const ChartsView = ({ run, curves, version, samples, queues }: Props) => {
  const stages = run.progress?.stages ?? [];
  const current = stages.find(({ name }) => name === run.progress?.stage)?.kind;
  // Drawn anew when something was measured, and not with whatever else is told of the run.
  const figures = useMemo(() => {
    const measured = measuredOf(stages, curves);
    // What goes on comes first.
    const kinds = kindsOf(measured).sort((a, b) => Number(b === current) - Number(a === current));
    return kinds.map((kind) => <Kind key={kind} kind={kind} of={measured.filter((stage) => stage.kind === kind)} />);
  }, [curves, version, current, stages.length]);
  return (
    <>
      {figures.length ? (
        figures
      ) : (
        <Empty>Nothing is measured yet: figures come with the first step of a stage that trains.</Empty>
      )}
      <Machine run={run} samples={samples} queues={queues} />
    </>
  );
};

/** Figures of all stages of a kind, which are shown and smoothed together. */
const Kind = ({ kind, of }: { kind: string; of: Measured[] }) => {
  const [hidden, setHidden] = useState<ReadonlySet<string>>(new Set());
  const [smoothing, setSmoothing] = useState(SMOOTHING);
  const groups = useMemo(() => figuresOf(kind, of), [kind, of]);
  const toggle = (name: string) => {
    const next = new Set(hidden);
    if (!next.delete(name)) next.add(name);
    setHidden(next);
  };
  return (
    <Section
      id={`kind-${kind}`}
      title={KIND_NAMES[kind] ?? kind}
      about="By step. Point at a figure to read all of them at that step, or move along it with the arrow keys."
    >
      <div class="controls">
        {of.map(({ name, hue }) => (
          <button
            key={name}
            type="button"
            class={`s${hue}`}
            aria-pressed={!hidden.has(name)}
            onClick={() => toggle(name)}
          >
            <span class="dot" />
            {name}
          </button>
        ))}
        <span class="gap" />
        <label class="soft" title="Lines are means weighted by a bell around each step">
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
      {groups.map((group) => (
        <Figures key={group.title} kind={kind} group={group} hidden={hidden} smoothing={smoothing} />
      ))}
    </Section>
  );
};

const Figures = (props: { kind: string; group: FigureGroup; hidden: ReadonlySet<string>; smoothing: number }) => {
  const { group } = props;
  const said = group.figures.flatMap((spec) => {
    const same = constantOf(spec);
    return same === null ? [] : [`${spec.title}: ${spec.isShare ? `${percent(same)} %` : measure(same)}`];
  });
  const drawn = group.figures.filter((spec) => constantOf(spec) === null);
  const grid = group.isHero ? `grid hero${drawn.length % 3 === 0 ? " three" : ""}` : "grid";
  return (
    <>
      {group.title ? <h3 class="group">{group.title}</h3> : null}
      <div class={grid}>
        {drawn.map((spec) => (
          <Figure key={spec.title} {...props} spec={spec} />
        ))}
      </div>
      {said.length ? <p class="said">The same throughout: {said.join("; ")}.</p> : null}
    </>
  );
};

const Figure = (props: { kind: string; spec: FigureSpec; hidden: ReadonlySet<string>; smoothing: number }) => {
  const { spec, hidden } = props;
  const lines = useMemo(() => spec.lines.filter(({ name }) => !hidden.has(name)), [spec, hidden]);
  return <Chart {...spec} lines={lines} smoothing={props.smoothing} syncKey={props.kind} hasKeys={hasKeys(spec)} />;
};

/** A figure names its lines where the buttons above don't. */
const hasKeys = ({ lines }: FigureSpec): boolean => new Set(lines.map(({ label }) => label)).size > 1;

const line = (name: string, hue: number, points: [number, number][], isDashed = false): Line => ({
  name,
  label: "",
  hue,
  isDashed,
  steps: points.map(([at]) => at),
  values: points.map(([, x]) => x),
});

/** Processor time of each stretch between two looks, as cores at work. A new process begins anew. */
export const coresOf = (samples: Sample[]): [number, number][] =>
  samples.slice(1).flatMap((sample, at) => {
    const before = samples[at];
    if (!before || sample.cpu_seconds < before.cpu_seconds) return [];
    const seconds = (sample.at_us - before.at_us) / 1e6;
    return seconds > 0 ? [[sample.at_us / 1e6, (sample.cpu_seconds - before.cpu_seconds) / seconds]] : [];
  });

const GIB = 1024 ** 3;

const Machine = (props: { run: Run; samples: Sample[]; queues: Queues[] }) => {
  const { run, queues } = props;
  const kept = useAsked((signal) => get("/api/v1/runs/{id}/usage", { id: run.id }, undefined, signal), [run.id]);
  const first = props.samples[0]?.at_us ?? Infinity;
  const samples = [...(kept.value?.samples ?? []).filter(({ at_us }) => at_us < first), ...props.samples];
  const seconds = samples.map(({ at_us }) => at_us / 1e6);
  const resident = samples.map(({ at_us, resident_bytes }): [number, number] => [at_us / 1e6, resident_bytes / GIB]);
  const predicted = [seconds[0], seconds.at(-1)].flatMap((at): [number, number][] =>
    at === undefined ? [] : [[at, run.memory_bytes / GIB]],
  );
  const names = [...new Set(queues.flatMap(({ actors }) => actors.map(({ actor }) => actor)))];
  const waiting = names.map((name, hue) =>
    line(
      name,
      hue,
      queues.flatMap(({ at, actors }): [number, number][] => {
        const of = actors.find(({ actor }) => actor === name);
        return of ? [[at, of.count / of.max]] : [];
      }),
    ),
  );
  const actors = hasProcess(run.status) ? (run.progress?.actors ?? []) : [];
  if (samples.length < 2) return null;
  const shared = { over: "time" as const, syncKey: "machine", isFromZero: true, isExact: true };
  return (
    <Section
      id="machine"
      title="Machine"
      about="What the run's process takes, and what waits for the actors of its stage; looked at every other second."
    >
      <div class="grid">
        <Chart
          {...shared}
          title="Memory"
          unit="GiB"
          about="Resident memory of the run's process, and what it was predicted to want at its peak."
          lines={[line("resident", 0, resident), line("predicted", 7, predicted, true)]}
          hasKeys
        />
        <Chart {...shared} title="Processor" unit="cores at work" lines={[line("cores", 2, coresOf(samples))]} />
        {waiting.length ? (
          <Chart
            {...shared}
            isShare
            max={1}
            title="Queues of actors"
            unit="% of their places taken"
            lines={waiting}
            hasKeys
          />
        ) : null}
      </div>
      {actors.length ? <Actors actors={actors} /> : null}
      <p class="said">
        {hasProcess(run.status) ? `Resident now: ${bytes(samples.at(-1)?.resident_bytes ?? 0)}` : "No process now"},
        predicted at most: {bytes(run.memory_bytes)}.
      </p>
    </Section>
  );
};

const Actors = ({ actors }: { actors: ActorQueue[] }) => (
  <dl class="actors">
    {actors.map(({ actor, count, max }) => (
      <div key={actor}>
        <dt>{actor}</dt>
        <dd>
          <Meter label={`Queue of the ${actor} actor`} share={count / max} text={`${count} of ${max}`} />
          <span>
            {count} of {max} {max === 1 ? "place" : "places"} taken
          </span>
        </dd>
      </div>
    ))}
  </dl>
);
