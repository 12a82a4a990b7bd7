// Test-time scaling: what is gained by asking more often, and by thinking longer.
"use strict";

// What is gained by asking more often, and by thinking longer.
const scalingPanels = [
  { title: "Majority vote (cons@k)", figure: "cons_at_ks", unit: "% right" },
  { title: "Vote weighted by the scorer", figure: "weighted_cons_at_ks", unit: "% right" },
  { title: "Best of k by the scorer", figure: "bon_at_ks", unit: "% right" },
  { title: "Any of k right (pass@k)", figure: "pass_at_ks", unit: "% right" },
];
const exact = { isHero: true, isShare: true, isExact: true };
const hasScaling = evals.some((row) => row.ks.length > 1);

const budgetsOf = (of) => {
  const models = [...new Set(variants.filter(({ asked, key }) => asked && of.by.has(key)).map(({ model }) => model))];
  return models.flatMap((model) => {
    const rows = variants.filter((variant) => variant.model === model && of.by.has(variant.key))
      .map((variant) => [variant, of.by.get(variant.key)])
      .sort(([, a], [, b]) => value(a.completion_len_tokens_mean) - value(b.completion_len_tokens_mean));
    const line = (figure, se, isDashed, label) => ({ name: model, hue: model, label, isDashed,
      steps: rows.map(([, row]) => value(row.completion_len_tokens_mean)),
      values: rows.map(([, row]) => row[figure]), errors: rows.map(([, row]) => row[se]),
      notes: rows.map(([variant]) => variant.asked || "as long as it wants") });
    const isVoted = rows.every(([, row]) => row.cons_at_k !== null);
    return rows.length < 2 ? [] : [line("pass_at_1", "pass_at_1_se", false, "pass@1"),
      ...(isVoted ? [line("cons_at_k", "cons_at_k_se", true, `cons@${of.row.k}`)] : [])];
  });
};

const scalingSection = () => datasets.map((of) => {
  const group = newGroup();
  const asked = variants.filter(({ key }) => of.by.has(key) && of.by.get(key).ks.length > 1);
  const lineOf = (variant, figure) => {
    const row = of.by.get(variant.key);
    return row[figure] ? { name: labelOf(variant), hue: hueOf(variant), steps: row.ks, values: row[figure],
      errors: row[figure + "_se"] } : null;
  };
  const all = scalingPanels.flatMap((panel) => asked.map((variant) => lineOf(variant, panel.figure)).filter(Boolean))
    .flatMap((line) => line.values.map(value)).filter(Number.isFinite);
  const least = Math.floor(10 * Math.min(...all)) / 10;
  const figures = scalingPanels.map((panel) => {
    const lines = asked.map((variant) => lineOf(variant, panel.figure)).filter(Boolean);
    // The same scale in each, so that they compare.
    const scale = { x: { unit: "samples", isLog: true }, min: least, max: 1 };
    return lines.length ? chart({ ...panel, ...scale, lines, ...exact }, group) : null;
  }).filter(Boolean);
  const budgets = budgetsOf(of);
  const longer = budgets.length ? chart({ title: "Thinking longer", lines: budgets, ...exact,
    unit: "% right", x: { unit: "tokens per completion, mean" },
    styles: budgets.some(({ isDashed }) => isDashed) ? [["pass@1", false], [`cons@${of.row.k}`, true]] : null },
  newGroup()) : null;
  if (!figures.length && !longer) return null;
  return [
    datasets.length > 1 ? el("h3", { class: "group" }, of.name) : null,
    figures.length > 0 && asked.length > 1 ? legend(asked.map((variant) =>
      ({ name: labelOf(variant), hue: hueOf(variant) })), group, false) : null,
    el("div", { class: heroGrid([...figures, longer].filter(Boolean)) }, figures, longer),
  ];
});
