// The page.
"use strict";

const nav = el("nav", { "aria-label": "Sections" });
const main = el("main", {}, overview());
const section = (id, title, about, ...children) => {
  nav.append(el("a", { href: "#" + id }, title));
  main.append(el("section", { id }, el("header", {}, el("h2", {}, title), el("p", {}, about)), children));
};
document.body.append(
  el("div", { class: "bar" }, el("div", {}, el("span", { class: "brand" }, "aha"), nav)), main,
  el("footer", {}, `Made by ${data.made_by} from the run's tables; aha query answers what is not here.`));

if (evals.length) {
  section("results", "Results", "Mean over samples (pass@1) and majority vote (cons@k), with standard errors " +
    "from a bootstrap over problems; bold: the best of its family.", resultsTable());
}
if (hasScaling) {
  section("scaling", "Test-time scaling", "What is gained by more samples of each problem, and by longer thinking; " +
    "bars are standard errors.", scalingSection());
}
const hasCurves = (kind) => curves.some((curve) => curve.kind === kind);
if (hasCurves("rl")) {
  section("rl", "Reinforcement learning", "By step. Point at a chart to read all of them at that step.",
    curvesSection("rl"));
}
if (data.moments.length) {
  section("moments", "Aha moments", "The first steps at which a right answer looks back at itself.",
    momentsSection());
}
if (sources.length) {
  section("completions", "Completions", "A group side by side: all of it was written for one prompt at one " +
    "step. Steps and prompts are a sample at even distances.", browserSection());
}
if (hasCurves("sft")) section("sft", "Fine-tuning", "By optimizer step.", curvesSection("sft"));
if (hasCurves("reward-model")) {
  section("reward-models", "Reward models", "By optimizer step.", curvesSection("reward-model"));
}
if (hasCurves("dpo")) {
  section("dpo", "Direct preference optimization", "By optimizer step.", curvesSection("dpo"));
}
section("stages", "Stages", "The pipeline, in the order in which it runs.", stagesTable(),
  data.pipeline === null ? null : el("details", {}, el("summary", {}, "The pipeline as it ran, defaults included"),
    el("pre", { class: "file card" }, data.pipeline)));
