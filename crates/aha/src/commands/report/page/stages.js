// What is known of stages, the overview, and the table of stages.
"use strict";

const { about, stages, evals, curves } = data;
const stageOf = new Map(stages.map((stage) => [stage.name, stage]));
const isTraining = (stage) => stage && ["rl", "sft", "reward-model", "dpo"].includes(stage.kind);
const colours = new Map();
for (const kind of ["rl", "reward-model", "dpo", "sft"]) {
  for (const curve of curves.filter((curve) => curve.kind === kind)) colours.set(curve.stage, colours.size % 10);
}
for (const { model } of evals) if (!colours.has(model)) colours.set(model, colours.size % 10);
const colour = (name) => (colours.has(name) ? "s" + colours.get(name) : "s7");
const hue = (of) => (typeof of === "number" ? "s" + (of % 10) : colour(of));
const kindNames = { rl: "RL", sft: "SFT", "reward-model": "reward model", dpo: "DPO" };
const kindOf = (stage) => kindNames[stage.kind] || stage.kind;
// The model that everything in a line of training began with.
const rootOf = (model) => {
  for (let left = 32; left > 0; left--) {
    const stage = stageOf.get(model);
    if (!isTraining(stage) || !stage.models.length) return model;
    model = stage.models[0];
  }
  return model;
};
// Means over the first and the last tenth of a line.
const ends = (of) => {
  const values = of.values.map(value).filter(Number.isFinite);
  if (!values.length) return null;
  const count = Math.max(1, Math.floor(values.length / 10));
  const mean = (some) => some.reduce((sum, x) => sum + x, 0) / some.length;
  return [mean(values.slice(0, count)), mean(values.slice(-count))];
};

const status = () => {
  if (stages.every((stage) => stage.status === "done")) return "finished";
  const now = stages.find((stage) => stage.status === "running");
  if (!now) return stages.some((stage) => stage.status === "done") ? "unfinished" : "nothing done yet";
  const of = now.steps_planned ? ` of ${grouped(now.steps_planned)}` : "";
  // Whether it is being worked on isn't known here.
  return `unfinished, at ${now.name}` + (now.steps ? `, step ${grouped(now.steps)}${of}` : "");
};

const tile = (name, figure, unit, note) =>
  el("div", { class: "tile card" },
    el("div", { class: "name" }, name),
    el("div", { class: "figure" }, figure, unit ? el("small", {}, " " + unit) : null),
    el("div", { class: "note" }, note));

const tiles = () => {
  const found = [];
  if (evals.length) {
    const best = evals.reduce((a, b) => (value(b.pass_at_1) > value(a.pass_at_1) ? b : a));
    const first = evals.find((e) => e.dataset === best.dataset && rootOf(e.model) === rootOf(best.model));
    const note = first !== best ? `, up from ${percent(value(first.pass_at_1))} % of ${first.model}` : "";
    found.push(tile("Best pass@1", percent(value(best.pass_at_1)), "%", best.model + note));
  }
  const rl = curves.find((curve) => curve.kind === "rl" && curve.lines.accuracy && ends(curve.lines.accuracy));
  if (rl) {
    const [from, to] = ends(rl.lines.accuracy);
    const note = `accuracy over ${plural(rl.lines.accuracy.steps.at(-1), "step")} of ${rl.stage}`;
    found.push(tile("What RL did", `${percent(from)} → ${percent(to)}`, "%", note));
  }
  const lens = rl && rl.lines.completion_len_tokens && ends(rl.lines.completion_len_tokens);
  if (lens) {
    const figure = `${measure(lens[0])} → ${measure(lens[1])}`;
    found.push(tile("Response length", figure, "", `tokens per completion in ${rl.stage}`));
  }
  if (about.completions_count) {
    const note = `with ${compact(about.completions_len_tokens)} tokens; every one is a row`;
    found.push(tile("Completions", grouped(about.completions_count), "", note));
  }
  if (about.last_at_us > about.started_at_us) {
    const note = `from the start to the newest row, ${moment(about.last_at_us)}`;
    found.push(tile("Time", duration(about.last_at_us - about.started_at_us), "", note));
  }
  return found;
};

const overview = () => {
  const figures = tiles();
  return el("div", {},
    el("h1", {}, about.name),
    el("p", { class: "lead" },
      el("b", {}, status()), ` · begun ${moment(about.started_at_us)} · `,
      `${plural(stages.length, "stage")} · seed ${about.seed} · aha ${about.version} · `,
      `${about.platform}, ${about.instruction_set}, ${plural(about.threads, "thread")}`),
    el("ol", { class: "strip", "aria-label": "Stages" }, stages.map((stage) =>
      el("li", { class: `${stage.status} ${colour(stage.name)}`, title: stage.description },
        isTraining(stage) ? el("span", { class: "dot" }) : null,
        stage.name, el("span", { class: "soft" }, ` ${kindOf(stage)}`),
        el("span", { class: "hidden" }, `, ${stage.status}`)))),
    figures.length ? el("div", { class: "tiles" }, figures) : null);
};

const stagesTable = () => {
  const row = (stage, idx) => {
    const steps = stage.steps === null ? "" :
      grouped(stage.steps) + (stage.steps_planned > stage.steps ? ` of ${grouped(stage.steps_planned)}` : "");
    const took = stage.span_us && stage.span_us[1] > stage.span_us[0]
      ? duration(stage.span_us[1] - stage.span_us[0]) : "";
    const from = stage.models.length > 3 ? plural(stage.models.length, "model") : stage.models.join(", ");
    const dot = isTraining(stage) ? el("span", { class: "dot " + colour(stage.name) }) : null;
    return el("tr", {},
      el("td", { class: "n soft wide" }, idx + 1),
      el("th", { scope: "row" }, dot, stage.name, el("span", { class: "about" }, stage.description)),
      el("td", {}, chip(kindOf(stage))),
      el("td", { class: "soft wide" }, from),
      el("td", { class: "n" }, steps),
      el("td", { class: "n wide" }, stage.completions_count === null ? "" : grouped(stage.completions_count)),
      el("td", { class: "n wide" }, took),
      el("td", {}, chip(stage.status, stage.status)));
  };
  const head = [["#", "n wide"], ["Stage", ""], ["Kind", ""], ["From", "wide"], ["Steps", "n"],
    ["Completions", "n wide"], ["First to last row", "n wide"], ["State", ""]];
  return el("div", { class: "card scroll" },
    el("table", {},
      el("thead", {}, el("tr", {}, head.map(([text, kind]) => el("th", { scope: "col", class: kind }, text)))),
      el("tbody", {}, stages.map(row))));
};
