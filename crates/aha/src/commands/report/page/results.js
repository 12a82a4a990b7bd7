// Results of evaluations, as the paper's tables have them.
"use strict";

// Rows: a model, and how it was asked where that differs: how long it thought, and what it multiplied.
const variantOf = (row) => [row.model, row.thinking, row.weights === "int8" ? "int8 weights" : null].filter(Boolean);
const keyOf = (row) => variantOf(row).join("\n");
const variants = [...new Map(evals.map((row) => [keyOf(row), variantOf(row)])).entries()]
  .map(([key, [model, ...asked]]) => ({ key, model, asked: asked.join(", ") }));
const labelOf = ({ model, asked }) => (asked ? `${model}, ${asked}` : model);
// A model that was asked in several ways has a colour for each.
const hueOf = (variant) =>
  variants.filter(({ model }) => model === variant.model).length > 1 ? variants.indexOf(variant) : variant.model;

// Columns: what was asked. Of what was asked twice, the stage tells the columns apart.
const datasets = (() => {
  const found = new Map();
  for (const row of evals) {
    const name = row.benchmark || row.dataset;
    let key = [name, row.k, row.problem_count].join("\n");
    const taken = found.get(key);
    const isTwice = taken && taken.by.has(keyOf(row));
    if (isTwice) key += "\n" + row.stage;
    const of = found.get(key) || { name: isTwice ? `${name} (${row.stage})` : name, row, by: new Map() };
    of.by.set(keyOf(row), row);
    found.set(key, of);
  }
  return [...found.values()];
})();

// What a table shows of an evaluation: figures in per cent with their errors, then numbers.
const hasAny = (figure) => evals.some((row) => row[figure] !== null && row[figure] !== undefined);
const differs = (figure) => evals.some((row) => value(row[figure]) > 0);
const figureColumns = [
  { figure: "pass_at_1", se: "pass_at_1_se", title: () => "pass@1, %" },
  { figure: "cons_at_k", se: "cons_at_k_se", title: (k) => `cons@${k}, %` },
  hasAny("weighted_cons_at_k") &&
    { figure: "weighted_cons_at_k", se: "weighted_cons_at_k_se", title: (k) => `weighted cons@${k}, %` },
  hasAny("bon_at_k") && { figure: "bon_at_k", se: "bon_at_k_se", title: (k) => `best of ${k}, %` },
  hasAny("pass_at_k") && { figure: "pass_at_k", se: "pass_at_k_se", title: (k) => `pass@${k}, %`, isSoft: true },
  hasAny("rating") && { figure: "rating", se: "rating_se", title: () => "rating", isNumber: true },
  { figure: "completion_len_tokens_mean", title: () => "tokens", isNumber: true, isSoft: true,
    write: (x) => (x < 1000 ? x.toFixed(1) : grouped(x)) },
  differs("truncated_share") && { figure: "truncated_share", title: () => "cut, %", isSoft: true },
].filter(Boolean);

const figureCell = (row, { figure, se, isNumber, isSoft, write }, isBest) => {
  const written = write || (isNumber ? measure : percent);
  const x = row[figure];
  if (x === null || x === undefined) return el("td", { class: "n soft" }, "–");
  const error = se ? row[se] : null;
  return el("td", { class: "n" + (isBest ? " best" : isSoft ? " soft" : "") }, written(value(x)),
    error === null || error === undefined ? null
      : el("span", { class: "se" }, ` ± ${written(value(error))}`));
};

const plotWidth = 190;
const plotX = (share) => 10 + share * (plotWidth - 26);
const plotAxis = () => svg("svg", { width: plotWidth, height: 18, "aria-hidden": "true" },
  [0, 0.5, 1].map((share) => svg("text", { class: "tick", x: plotX(share), y: 14, "text-anchor": "middle" },
    share === 1 ? "100 %" : 100 * share)));
const plot = (row, variant) => {
  const [width, height, x] = [plotWidth, 26, plotX];
  const y = height / 2;
  const parts = [0, 0.25, 0.5, 0.75, 1].map((share) =>
    svg("line", { class: "rule", x1: x(share), x2: x(share), y1: 0, y2: height }));
  const pass = value(row.pass_at_1);
  const se = value(row.pass_at_1_se) || 0;
  const clamp = (share) => Math.min(1, Math.max(0, share));
  parts.push(svg("line", { class: "whisker", x1: x(clamp(pass - se)), x2: x(clamp(pass + se)), y1: y, y2: y }));
  if (row.cons_at_k !== null) {
    const at = x(value(row.cons_at_k));
    parts.push(svg("path", { class: "cons", d: `M${at} ${y - 5}L${at + 5} ${y}L${at} ${y + 5}L${at - 5} ${y}Z` }));
  }
  parts.push(svg("circle", { class: "pass", cx: x(pass), cy: y, r: 4.5 }));
  const label = `pass@1 ${percent(pass)} %` +
    (row.cons_at_k === null ? "" : `, cons@${row.k} ${percent(value(row.cons_at_k))} %`);
  return svg("svg", { class: hue(hueOf(variant)), width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": label }, parts);
};

const resultsTable = () => {
  const roots = [...new Set(variants.map(({ model }) => rootOf(model)))];
  const hasPlot = datasets.length === 1;
  const isScore = ({ isSoft, isNumber }) => !isSoft && !isNumber;
  const bestOf = (of, root, figure) =>
    Math.max(...[...of.by.values()].filter((row) => rootOf(row.model) === root).map((row) =>
      row[figure] === null || row[figure] === undefined ? -1 : value(row[figure])));
  const cells = (of, variant) => {
    const row = of.by.get(variant.key);
    if (!row) return el("td", { class: "n soft", colspan: figureColumns.length }, "–");
    return figureColumns.map((column) => figureCell(row, column, isScore(column) && variants.length > 1 &&
      value(row[column.figure]) === bestOf(of, rootOf(variant.model), column.figure)));
  };
  const body = roots.flatMap((root) => {
    const rows = variants.filter(({ model }) => rootOf(model) === root).map((variant) => {
      const stage = stageOf.get(variant.model);
      const made = isTraining(stage) ? `${kindOf(stage)} of ${stage.models[0] || "?"}` : "as it came";
      const only = datasets[0].by.get(variant.key);
      return el("tr", {},
        el("th", { scope: "row" }, variant.model,
          variant.asked ? el("span", { class: "about" }, variant.asked)
            : stage ? el("span", { class: "about" }, stage.description) : null),
        el("td", { class: "soft wide" }, made),
        datasets.map((of) => cells(of, variant)),
        hasPlot ? el("td", { class: "plot wide" }, only ? plot(only, variant) : null) : null);
    });
    const columns = 2 + figureColumns.length * datasets.length + (hasPlot ? 1 : 0);
    const family = el("tr", { class: "family" }, el("th", { colspan: columns, scope: "rowgroup" },
      `models that began as ${root}`));
    return roots.length > 1 ? [family, ...rows] : rows;
  });
  const top = datasets.map((of) => el("th", { class: "dataset", scope: "colgroup", colspan: figureColumns.length },
    `${of.name} · ${plural(of.row.problem_count, "problem")}, ${plural(of.row.k, "sample")} each`));
  const heads = datasets.map((of) => figureColumns.map(({ title }) =>
    el("th", { class: "n", scope: "col" }, title(of.row.k))));
  return el("div", { class: "card scroll", tabindex: 0, role: "region", "aria-label": "Results" },
    el("table", {},
      el("thead", {},
        el("tr", {}, el("th", {}), el("th", { class: "wide" }), top, hasPlot ? el("th", { class: "wide" }) : null),
        el("tr", {}, el("th", { scope: "col" }, "Model"), el("th", { class: "wide", scope: "col" }, "Made by"), heads,
          hasPlot
            ? el("th", { class: "plot wide", scope: "col" }, `● pass@1  ◇ cons@${datasets[0].row.k}`, plotAxis())
            : null)),
      el("tbody", {}, body)));
};
