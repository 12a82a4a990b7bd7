// The first right answers that look back.
"use strict";

const momentsSection = () => {
  // Of each pattern the shortest way to say it.
  const words = data.reflections.map((pattern) => pattern
    .replace(/\(\?:[^)]*\)\?/g, "").replace(/\(\?:([^|)]*)[^)]*\)/g, "$1")
    .replace(/(\w)\+/g, "$1$1").replace(/-\?|\[- \]/g, "-").replace(/^i /, "I ")).join(", ");
  const cards = data.moments.flatMap(({ stage, moments }) => moments.map((found, i) =>
    el("article", { class: "moment card" },
      el("div", { class: "head" },
        el("b", {}, el("span", { class: "dot " + colour(stage) }), `${stage}, step ${grouped(found.step)}`),
        el("span", { class: "soft" }, (i === 0 ? "the first; " : "") +
          `${plural(found.count, "right answer")} of this step ${found.count === 1 ? "looks" : "look"} back`)),
      el("div", { class: "text prompt soft" }, found.prompt),
      el("p", { class: "text" }, found.pieces.map((piece, at) => (at % 2 ? el("mark", {}, piece) : piece))),
      el("div", { class: "where" }, `prompt ${found.prompt_id}, sample ${found.sample_idx}` +
        (found.answer === null ? "" : `, reference answer ${found.answer}`)))));
  const none = data.moments.filter(({ rewards, moments }) => rewards.length && !moments.length)
    .map(({ stage }) => stage);
  const unknown = data.moments.filter(({ rewards }) => !rewards.length).map(({ stage }) => stage);
  const isPartly = ({ looked_steps: [looked, all] }) => looked < all;
  const partly = data.moments.filter(isPartly).map(({ stage, looked_steps: [looked, all] }) =>
    `Of ${stage}, ${grouped(looked)} of ${grouped(all)} steps were looked at, at even distances.`);
  const empty = [
    none.length ? el("div", {}, `No right answer of ${none.join(", ")} has a reflection word.`) : null,
    unknown.length ? el("div", {}, `Of ${unknown.join(", ")} it isn't known which answers are right: ` +
      "no reward of the stage compares with answers.") : null,
    ...partly.map((text) => el("div", {}, text)),
  ].filter(Boolean);
  return [
    cards.length ? el("div", { class: "moments" }, cards) : null,
    empty.length ? el("div", { class: "empty card" }, empty,
      el("div", { class: "words" }, `Looked for: ${words}; and what is like them.`)) : null,
  ];
};
