// Which figures there are of what was measured, by the same table as on the page of `aha report`.
import { type Group, type Panel, panels } from "report:figures.js";
import type { StageProgress } from "../api/client";
import type { Curves, Series } from "./curves";

export interface Line {
  name: string;
  /** What the line is of, where a figure has several of one name. */
  label: string;
  hue: number;
  isDashed: boolean;
  steps: number[];
  values: number[];
}

export interface FigureSpec {
  title: string;
  about: string;
  unit: string;
  lines: Line[];
  isShare: boolean;
  isFromZero: boolean;
  isExact: boolean;
  isHero: boolean;
  max: number | undefined;
}

export interface FigureGroup {
  title: string;
  isHero: boolean;
  figures: FigureSpec[];
}

/** A stage that measured, with its colour. */
export interface Measured {
  name: string;
  kind: string;
  hue: number;
  series: Map<string, Series>;
}

const KINDS = ["rl", "reward-model", "dpo", "sft"];
export const KIND_NAMES: Record<string, string> = {
  rl: "Reinforcement learning",
  "reward-model": "Reward models",
  dpo: "Direct preference optimization",
  sft: "Fine-tuning",
};

/** The stages that measured something, each with a colour that stays its own. */
export const measuredOf = (stages: StageProgress[], curves: Curves): Measured[] => {
  const order = KINDS.flatMap((kind) => stages.filter((stage) => stage.kind === kind));
  const hues = new Map(order.map((stage, at) => [stage.name, at % 10]));
  return stages.flatMap(({ name, kind }) => {
    const series = curves.get(name);
    return series?.size ? [{ name, kind, hue: hues.get(name) ?? 7, series }] : [];
  });
};

/** The kinds of stages that measured, in the order in which they are shown. */
export const kindsOf = (measured: Measured[]): string[] => {
  const found = [...new Set(measured.map(({ kind }) => kind))];
  return [...KINDS.filter((kind) => found.includes(kind)), ...found.filter((kind) => !KINDS.includes(kind))];
};

const lineOf = (stage: Measured, key: string, extra: Partial<Line>): Line | null => {
  const series = stage.series.get(key);
  if (!series?.steps.length) return null;
  const { steps, values } = series;
  return { name: stage.name, label: "", hue: stage.hue, isDashed: false, steps, values, ...extra };
};

const isLine = (line: Line | null): line is Line => line !== null;

const docOf = (of: Measured[], keys: string[]): string => {
  const docs = keys.flatMap((key) => of.map(({ series }) => series.get(key)?.doc ?? ""));
  return [...new Set(docs.filter(Boolean))].join(" ").replaceAll("`", "");
};

const figureOf = (panel: Panel, isHero: boolean, title: string, about: string, lines: Line[]): FigureSpec => ({
  title,
  about,
  unit: panel.unit,
  lines,
  isShare: panel.isShare ?? false,
  isFromZero: panel.isFromZero ?? false,
  isExact: panel.isExact ?? false,
  isHero,
  max: panel.max,
});

const titleOf = (panel: Panel, name: string): string =>
  typeof panel.title === "string" ? panel.title : panel.title(name);

/** Figures of all measures that begin with the panel's prefix: one each, or all in one for each stage. */
const ofPrefix = (panel: Panel, prefix: string, of: Measured[], taken: Set<string>, isHero: boolean): FigureSpec[] => {
  const names = new Set(of.flatMap(({ series }) => [...series.keys()]));
  const keys = [...names].filter((key) => key.startsWith(prefix) && !taken.has(key)).sort();
  for (const key of keys) taken.add(key);
  const short = (key: string) => key.slice(prefix.length);
  if (!panel.isTogether) {
    return keys.map((key) => {
      const lines = of.map((stage) => lineOf(stage, key, {})).filter(isLine);
      return figureOf(panel, isHero, titleOf(panel, short(key)), docOf(of, [key]), lines);
    });
  }
  return of.flatMap((stage) => {
    const lines = keys.map((key, hue) => lineOf(stage, key, { name: short(key), hue: hue % 10 })).filter(isLine);
    const title = titleOf(panel, "") + (of.length > 1 ? `: ${stage.name}` : "");
    return lines.length ? [figureOf(panel, isHero, title, docOf([stage], keys), lines)] : [];
  });
};

/** The figure of a panel; where many stages have several measures of it, one for each measure. */
const ofKeys = (panel: Panel, keys: string[], of: Measured[], isHero: boolean): FigureSpec[] => {
  const has = (key: string) => of.filter(({ series }) => series.get(key)?.steps.length);
  const known = keys.filter((key) => has(key).length);
  const label = (key: string) => panel.labels?.[keys.indexOf(key)] ?? "";
  const isSplit = known.length > 1 && known.some((key) => has(key).length > 3);
  const parts = isSplit ? known.map((key) => [key]) : known.length ? [known] : [];
  return parts.map((part) => {
    const first = part[0] ?? "";
    const lines = part.flatMap((key) =>
      of.map((stage) => lineOf(stage, key, { label: label(key), isDashed: !isSplit && key !== keys[0] })),
    );
    const title = titleOf(panel, "") + (isSplit ? `: ${label(first)}` : "");
    return figureOf(panel, isHero, title, docOf(of, part), lines.filter(isLine));
  });
};

/** The figures of the stages of one kind, in their groups; what no group knows comes last. */
export const figuresOf = (kind: string, of: Measured[]): FigureGroup[] => {
  const groups: Group[] = panels[kind] ?? [];
  const taken = new Set(groups.flatMap((group) => group.panels.flatMap((panel) => panel.keys ?? [])));
  const made = groups.map((group) => {
    const isHero = group.isHero ?? false;
    const figures = group.panels.flatMap((panel) =>
      panel.prefix ? ofPrefix(panel, panel.prefix, of, taken, isHero) : ofKeys(panel, panel.keys ?? [], of, isHero),
    );
    return { title: group.title ?? "", isHero, figures };
  });
  const names = [...new Set(of.flatMap(({ series }) => [...series.keys()]))].sort();
  const more = names
    .filter((name) => !taken.has(name))
    .flatMap((name) => ofKeys({ title: name, keys: [name], unit: "value" }, [name], of, false));
  return [...made, { title: "Further measures", isHero: false, figures: more }].filter(({ figures }) => figures.length);
};

/** The figure of one measure, by its title in the table, of stages of several runs. */
export const titleOfMeasure = (name: string): { title: string; unit: string; isShare: boolean } => {
  for (const group of Object.values(panels).flat()) {
    for (const panel of group.panels) {
      const { keys, labels, prefix, unit, isShare = false } = panel;
      const at = keys?.indexOf(name) ?? -1;
      if (at >= 0) {
        const label = labels?.[at];
        return { title: titleOf(panel, "") + (label ? `: ${label}` : ""), unit, isShare };
      }
      if (prefix && name.startsWith(prefix)) {
        const title = `${titleOf(panel, name.slice(prefix.length))}`;
        return { title: panel.isTogether ? `${title}: ${name.slice(prefix.length)}` : title, unit, isShare };
      }
    }
  }
  return { title: name, unit: "value", isShare: false };
};

/** Whether a line is one number throughout: it needs no figure then. */
export const constantOf = ({ lines }: FigureSpec): number | null => {
  const values = lines.flatMap((line) => line.values);
  const [first] = values;
  return first !== undefined && values.length > lines.length && values.every((x) => x === first) ? first : null;
};
