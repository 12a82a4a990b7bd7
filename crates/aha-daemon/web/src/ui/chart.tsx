// A figure: lines over steps or over time, with values that can be pointed at, read by keyboard, or shown as a table.
import { useEffect, useId, useMemo, useRef, useState } from "preact/hooks";
import { grouped, measure, percent, shortTick, smoothed, tickText } from "report:numbers.js";
import uPlot from "uplot";
import type { Line } from "../data/figures";
import { useStore } from "../store";
import { colour, shown } from "../theme";

export interface ChartProps {
  title: string;
  about?: string;
  unit: string;
  lines: Line[];
  isShare?: boolean;
  isFromZero?: boolean;
  isExact?: boolean;
  isHero?: boolean;
  max?: number | undefined;
  /** What is at the x axis: steps, or seconds since 1970. */
  over?: "step" | "time";
  /** 0 to 100: how wide the bell is that lines are averaged with. */
  smoothing?: number;
  /** Figures of one key point at the same place. */
  syncKey: string;
  /** Whether lines are named above the figure. */
  hasKeys?: boolean;
}

const FONT = '11.5px system-ui, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif';
/** Points of a line beyond which they run into each other. */
const DENSE = 800;
/** Rows of the table beside a figure, at most: of more, some at even distances. */
const TABLE_ROWS_MAX = 200;

/** All x values of the lines, and each line's values at them. */
const aligned = (
  lines: Line[],
  smoothing: number,
): { xs: number[]; raw: (number | null)[][]; lasting: (number | null)[][] } => {
  const xs = [...new Set(lines.flatMap((line) => line.steps))].sort((a, b) => a - b);
  const places = new Map(xs.map((x, at) => [x, at]));
  const longest = Math.max(0, ...lines.map((line) => line.steps.length));
  const sigma = (smoothing / 100) * longest * 0.12;
  const spread = (line: Line, values: number[]) => {
    const found = new Array<number | null>(xs.length).fill(null);
    line.steps.forEach((step, at) => {
      const [place, value] = [places.get(step), values[at]];
      if (place !== undefined && value !== undefined && Number.isFinite(value)) found[place] = value;
    });
    return found;
  };
  return {
    xs,
    raw: lines.map((line) => spread(line, line.values)),
    lasting: lines.map((line) => spread(line, smoothed(line.values, sigma))),
  };
};

const range = (props: ChartProps, low: number | null, high: number | null): [number, number] => {
  let [least, most] = [low ?? 0, high ?? 1];
  if (props.isFromZero) [least, most] = [Math.min(0, least), Math.max(0, most)];
  if (props.max !== undefined) most = Math.max(most, props.max);
  if (most - least < 1e-9 * Math.max(Math.abs(least), Math.abs(most), 1e-6)) {
    const size = Math.abs(most) || 1;
    return props.isFromZero && least >= 0 ? [0, size] : [least - size / 2, most + size / 2];
  }
  const room = (most - least) * 0.06;
  return [props.isFromZero && least === 0 ? 0 : least - room, props.max === most ? most : most + room];
};

const nameOf = (line: Line): string => [line.name, line.label].filter(Boolean).join(", ");

const optionsOf = (props: ChartProps, width: number, onPoint: (at: number | null) => void): uPlot.Options => {
  const factor = props.isShare ? 100 : 1;
  const hue = (line: Line) => () => colour(`--c${line.hue}`);
  const dash = (line: Line) => (line.isDashed ? { dash: [5, 5] } : {});
  const isSmoothed = !props.isExact && (props.smoothing ?? 0) > 0;
  const axis = {
    stroke: () => colour("--soft"),
    font: FONT,
    grid: { stroke: () => colour("--grid"), width: 1 },
    ticks: { stroke: () => colour("--line"), width: 1, size: 4 },
  };
  return {
    width,
    height: props.isHero ? 250 : 170,
    padding: [8, 12, 0, 0],
    legend: { show: false },
    scales: {
      x: { time: props.over === "time" },
      y: { range: (_, low, high) => range(props, low, high) },
    },
    axes: [
      {
        ...axis,
        grid: { show: false },
        size: 28,
        space: props.over === "time" ? 78 : 46,
        values: (_, at) => (props.over === "time" ? times(at) : steps(at)),
      },
      {
        ...axis,
        size: 48,
        space: 28,
        values: (_, at) => {
          const gap = (at[1] ?? 1) - (at[0] ?? 0);
          const most = factor * Math.max(...at.map(Math.abs));
          return at.map((x) => tickText(x * factor, gap * factor, most));
        },
      },
    ],
    series: [
      {},
      ...props.lines.map((line) => ({
        stroke: hue(line),
        width: isSmoothed ? 1 : line.isDashed ? 1.75 : 2,
        alpha: isSmoothed ? (line.steps.length > DENSE ? 0.14 : 0.28) : 1,
        spanGaps: true,
        points: { show: line.steps.length < 2, size: 6 },
        ...dash(line),
      })),
      ...(isSmoothed ? props.lines : []).map((line) => ({
        stroke: hue(line),
        width: line.isDashed ? 1.75 : 2,
        spanGaps: true,
        points: { show: false },
        ...dash(line),
      })),
    ],
    cursor: {
      y: false,
      drag: { x: false, y: false },
      sync: { key: props.syncKey },
      points: { size: 8, width: 1.5, stroke: () => colour("--card"), fill: (plot, at) => strokeOf(plot, at) },
    },
    hooks: { setCursor: [(plot) => onPoint(plot.cursor.idx ?? null)] },
  };
};

const steps = (at: number[]): string[] => at.map((x) => (Number.isInteger(x) ? shortTick(x) : ""));

const timeOf = (seconds: number, hasSeconds: boolean): string =>
  new Date(seconds * 1000).toLocaleTimeString([], {
    hourCycle: "h23",
    hour: "2-digit",
    minute: "2-digit",
    ...(hasSeconds ? { second: "2-digit" } : {}),
  });

/** Times of the day, with seconds where a minute has several. */
const times = (at: number[]): string[] => at.map((x) => timeOf(x, (at[1] ?? 60) - (at[0] ?? 0) < 60));

const strokeOf = (plot: uPlot, at: number): string => {
  const stroke = plot.series[at]?.stroke;
  return typeof stroke === "function" ? String(stroke(plot, at)) : "";
};

/** What makes a plot another one, and not the same with more points. */
const shapeOf = (props: ChartProps): string =>
  JSON.stringify([
    props.lines.map((line) => [line.name, line.label, line.hue, line.isDashed, line.steps.length < 2]),
    [props.isHero, props.isShare, props.isFromZero, props.max, props.over, props.syncKey],
    !props.isExact && (props.smoothing ?? 0) > 0,
  ]);

export const Chart = (props: ChartProps) => {
  const { title, unit, lines, over = "step" } = props;
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  /** Where the arrow keys have led: it stays there while points come in. */
  const pinned = useRef<number | null>(null);
  const [at, setAt] = useState<number | null>(null);
  const [isTable, setTable] = useState(false);
  const [hasFocus, setFocus] = useState(false);
  const theme = useStore(shown);
  const id = useId();
  const smoothing = props.isExact ? 0 : (props.smoothing ?? 0);
  const { xs, raw, lasting } = useMemo(() => aligned(lines, smoothing), [lines, smoothing]);
  const data = useMemo<uPlot.AlignedData>(
    () => [xs, ...raw, ...(smoothing > 0 ? lasting : [])],
    [xs, raw, lasting, smoothing],
  );
  const shape = shapeOf(props);
  const written = (x: number | null | undefined) =>
    x === null || x === undefined ? "–" : props.isShare ? `${percent(x)} %` : measure(x);
  const place = (x: number | undefined) => (over === "time" ? timeOf(x ?? 0, true) : `step ${grouped(x ?? 0)}`);

  useEffect(() => {
    const target = box.current;
    if (!target) return undefined;
    const made = new uPlot(optionsOf(props, target.clientWidth || 300, setAt), data, target);
    plot.current = made;
    const sizes = new ResizeObserver(() => {
      const width = target.clientWidth;
      if (width && width !== made.width) requestAnimationFrame(() => made.setSize({ width, height: made.height }));
    });
    sizes.observe(target);
    return () => {
      sizes.disconnect();
      made.destroy();
      plot.current = null;
    };
  }, [shape]);
  const point = () => {
    const made = plot.current;
    if (made && pinned.current !== null) made.setCursor({ left: made.valToPos(pinned.current, "x"), top: 20 });
  };
  useEffect(() => {
    plot.current?.setData(data);
    // The scale follows the data a moment later.
    queueMicrotask(point);
  }, [data]);
  useEffect(() => plot.current?.redraw(false), [theme]);

  const move = (event: KeyboardEvent) => {
    const last = xs.length - 1;
    const from = pinned.current === null ? null : xs.indexOf(pinned.current);
    const to = {
      ArrowRight: from === null ? 0 : from + 1,
      ArrowLeft: from === null ? last : from - 1,
      Home: 0,
      End: last,
    }[event.key];
    if (to === undefined || last < 0) return;
    event.preventDefault();
    pinned.current = xs[Math.min(last, Math.max(0, to))] ?? null;
    point();
  };
  const hits = at === null ? [] : lines.map((line, n) => ({ line, x: raw[n]?.[at] })).filter(({ x }) => x != null);
  const isRight = at !== null && at > xs.length / 2;
  return (
    <figure class="chart card" aria-labelledby={id}>
      <figcaption>
        <span id={id} class="title" title={props.about}>
          {title}
        </span>
        <span class="soft">{unit}</span>
      </figcaption>
      {props.hasKeys ? <Keys lines={lines} /> : null}
      <div
        ref={box}
        class="plotted"
        data-points={xs.length}
        role="img"
        tabIndex={0}
        aria-label={`${title}, ${unit} by ${over}: ${lines.map(nameOf).join("; ")}. Arrow keys read values.`}
        onKeyDown={move}
        onFocus={() => setFocus(true)}
        onBlur={() => {
          setFocus(false);
          pinned.current = null;
          plot.current?.setCursor({ left: -10, top: -10 });
        }}
      />
      {hits.length ? (
        <div class={`tip ${isRight ? "at-left" : "at-right"}`} aria-hidden="true">
          <div class="soft">{place(xs[at ?? 0])}</div>
          {hits.map(({ line, x }) => (
            <div key={nameOf(line)} class={`s${line.hue} hit`}>
              <span>
                <span class="dot" />
                {nameOf(line)}
              </span>
              <b>{written(x)}</b>
            </div>
          ))}
        </div>
      ) : null}
      <p class="hidden" aria-live="polite">
        {hasFocus && hits.length
          ? `${place(xs[at ?? 0])}: ${hits.map(({ line, x }) => `${nameOf(line)} ${written(x)}`).join(", ")}`
          : ""}
      </p>
      <span class="over" aria-hidden="true">
        {over}
      </span>
      <details class="as-table" onToggle={(event) => setTable(event.currentTarget.open)}>
        <summary>
          Values<span class="hidden"> of {title}</span>
        </summary>
        {isTable ? <Values xs={xs} lines={lines} raw={raw} place={place} written={written} /> : null}
      </details>
    </figure>
  );
};

/** Which line is which: each name with its colour, solid or dashed. */
const Keys = ({ lines }: { lines: Line[] }) => (
  <div class="keyline">
    {lines.map((line) => (
      <span key={nameOf(line)} class={`s${line.hue}`}>
        <span class={line.isDashed ? "dot hollow" : "dot"} />
        {nameOf(line)}
      </span>
    ))}
  </div>
);

const Values = (props: {
  xs: number[];
  lines: Line[];
  raw: (number | null)[][];
  place: (x: number | undefined) => string;
  written: (x: number | null | undefined) => string;
}) => {
  const every = Math.ceil(props.xs.length / TABLE_ROWS_MAX);
  const rows = props.xs.map((_, at) => at).filter((at) => (props.xs.length - 1 - at) % every === 0);
  return (
    <div class="scroll values" tabIndex={0} role="group" aria-label="Values">
      <table>
        <thead>
          <tr>
            <th scope="col" />
            {props.lines.map((line) => (
              <th key={nameOf(line)} scope="col" class="n">
                {nameOf(line)}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map((at) => (
            <tr key={at}>
              <th scope="row">{props.place(props.xs[at])}</th>
              {props.raw.map((values, n) => (
                <td key={n} class="n">
                  {props.written(values[at])}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
};
