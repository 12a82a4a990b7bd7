// Completions of a prompt side by side, token by token.
"use strict";

const { pieces, sources } = data.browser;
const surprise = (p) => [0.9, 0.7, 0.45, 0.25, 0.1, 0.03].findIndex((least) => p >= least);
const surpriseClass = (centinats) => {
  if (centinats === null) return "";
  const at = surprise(Math.exp(centinats / 100));
  return at === 0 ? "" : "u" + (at < 0 ? 6 : at);
};
const advantageClass = (advantage) => {
  const size = advantage === null ? 0 : Math.abs(value(advantage));
  const at = [0.05, 0.5, 1, 1.75].filter((least) => size >= least).length;
  return at ? (value(advantage) > 0 ? "a" : "b") + at : "";
};
const keysOf = (mode) => {
  const scale = (classes, labels, from, to) =>
    [el("i", {}, from), classes.map((of, i) => el("span", { class: of }, labels[i])), el("i", {}, to)];
  if (mode === "probability") {
    const labels = ["90 %", "70", "45", "25", "10", "3", "0"];
    return scale(["", "u1", "u2", "u3", "u4", "u5", "u6"], labels, "probability of the token, at least", "");
  }
  if (mode === "advantage") {
    const labels = ["−1.75", "−1", "−0.5", "0", "+0.5", "+1", "+1.75"];
    return scale(["b4", "b3", "b2", "", "a2", "a3", "a4"], labels, "advantage", "");
  }
  return [];
};

const state = { source: 0, step: 0, group: 0, mode: "probability", isByReward: false };

const tokenTip = el("div", { class: "tip", hidden: true });
document.body.append(tokenTip);
const tokenSaid = el("p", { class: "hidden", "aria-live": "polite" });

const showToken = (span, row, at) => {
  const { t, p, a, v, forced } = row.tokens;
  const count = pieces.counts[t[at]];
  const isForced = forced && forced.includes(at);
  const kind = (count === 0 ? "special token" : count > 1 ? `${count} tokens of one character` : "token") +
    (isForced ? ", put there by the thinking budget," : "");
  const p100 = p[at];
  const likely = p100 === null ? "no finite log-prob"
    : `probability ${measure(Math.exp(p100 / 100))}, log-prob ${(p100 / 100).toFixed(2).replace("-", "−")}`;
  const left = row.tokens.gap && at >= row.tokens.gap[0] ? row.tokens.gap[1] : 0;
  const place = `${kind} ${grouped(at + 1 + left)} of ${grouped(row.len)}`;
  const own = a && a[at] !== null ? a[at] / 100 : null;
  const adv = own !== null ? `advantage ${measure(own)}`
    : row.adv === null ? "no advantage" : `advantage ${measure(value(row.adv))}`;
  const worth = v && v[at] !== null ? ` · value ${measure(v[at] / 100)}` : "";
  tokenTip.replaceChildren(
    el("div", { class: "mono" }, JSON.stringify(pieces.texts[t[at]])),
    el("div", {}, likely), el("div", { class: "soft" }, `${adv}${worth} · ${place}`));
  tokenTip.hidden = false;
  const box = span.getBoundingClientRect();
  const width = tokenTip.offsetWidth;
  const leftEdge = Math.max(8, Math.min(box.left, document.documentElement.clientWidth - width - 12));
  tokenTip.style.left = `${leftEdge + scrollX}px`;
  tokenTip.style.top = `${box.bottom + scrollY + 8}px`;
};

const completionText = (row) => {
  const { tokens } = row;
  if (tokens.text !== undefined) {
    const of = state.mode === "advantage" ? advantageClass(row.adv) : "";
    return el("p", { class: "text", tabindex: 0, role: "group" }, el("span", { class: of }, tokens.text));
  }
  const forced = new Set(tokens.forced);
  const advantageOf = (at) => (tokens.a && tokens.a[at] !== null ? tokens.a[at] / 100 : row.adv);
  const spans = tokens.t.map((piece, at) => {
    const of = state.mode === "probability" ? surpriseClass(tokens.p[at])
      : state.mode === "advantage" ? advantageClass(advantageOf(at)) : "";
    const special = (pieces.counts[piece] === 0 ? " special" : "") + (forced.has(at) ? " forced" : "");
    return el("span", { class: (of + special).trim() || null, "data-at": at }, pieces.texts[piece]);
  });
  const all = [...spans];
  if (tokens.gap) {
    all.splice(tokens.gap[0], 0, el("i", { class: "cut" }, `${plural(tokens.gap[1], "token")} left out`));
  }
  let on = null;
  const select = (span) => {
    if (on) on.classList.remove("on");
    on = span;
    if (!span) { tokenTip.hidden = true; return; }
    span.classList.add("on");
    showToken(span, row, Number(span.dataset.at));
  };
  const spanOf = (event) => (event.target.dataset && event.target.dataset.at ? event.target : null);
  return el("p", { class: "text", tabindex: 0, role: "group", "aria-label": "completion; arrow keys go by token",
    pointerover: (event) => select(spanOf(event)),
    pointerleave: () => select(null),
    blur: () => select(null),
    keydown: (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!by || !spans.length) return;
      event.preventDefault();
      const at = on ? spans.indexOf(on) + by : by > 0 ? 0 : spans.length - 1;
      const next = spans[Math.min(spans.length - 1, Math.max(0, at))];
      next.scrollIntoView({ block: "nearest" });
      select(next);
      tokenSaid.textContent = tokenTip.textContent;
    } }, all);
};

const completion = (row, source) => {
  const adv = row.adv === null ? null : value(row.adv);
  const parts = source.reward_names.map((name, i) => {
    const score = row.parts[i];
    const kind = score === 1 ? "right" : score === 0 ? "wrong" : "";
    return chip(`${name} ${score === null || score === undefined ? "–" : measure(value(score))}`, kind);
  });
  return el("article", { class: "completion card" },
    el("div", { class: "head" },
      el("span", { class: "idx" }, `#${row.idx}`),
      el("span", { class: "reward", title: "reward" }, row.reward === null ? "no reward" : measure(value(row.reward))),
      adv === null ? null : el("span", { class: "adv " + (adv > 0 ? "plus" : adv < 0 ? "minus" : "soft"),
        title: "advantage" }, (adv > 0 ? "+" : "") + measure(adv))),
    el("div", { class: "facts" }, parts,
      chip(plural(row.len, "token")),
      row.finish === "length" ? chip("cut at the limit", "wrong") : chip(row.finish),
      row.skip && source.kind === "rl" ? chip(`not trained on: ${row.skip.replaceAll("_", " ")}`, "skip") : null),
    row.error ? el("div", { class: "minus text" }, row.error) : null,
    completionText(row));
};

const browserSection = () => {
  const place = el("div");
  const controls = el("div", { class: "controls" });
  const keys = el("div", { class: "keys", "aria-hidden": "true" });
  const clamp = (x, count) => Math.max(0, Math.min(count - 1, x));
  const choose = (change) => { Object.assign(state, change); draw(); };

  const picker = (label, options, at, pick, hasButtons = true) => {
    const select = el("select", { "aria-label": label, change: (event) => pick(Number(event.currentTarget.value)) },
      options.map((text, i) => el("option", { value: i, selected: i === at }, text)));
    const button = (text, to, name) => el("button", { type: "button", "aria-label": `${name} ${label}`,
      disabled: to < 0 || to >= options.length, click: () => pick(to) }, text);
    const [before, after] = hasButtons ? [button("‹", at - 1, "previous"), button("›", at + 1, "next")] : [];
    return el("span", { class: "picker" }, el("span", { class: "soft" }, label), before, select, after);
  };

  const nameOf = (source) => {
    const by = source.model && source.kind === "eval" ? `${source.stage}: ${source.model}` : source.stage;
    return `${by} (${kindNames[source.kind] || source.kind})`;
  };

  // The first group with different rewards, where there is one: it shows what is learned from.
  const firstGroup = (step) => {
    const isMixed = (group) => new Set(group.rows.map((row) => row.reward)).size > 1;
    return Math.max(0, step.groups.findIndex(isMixed));
  };

  const draw = () => {
    const focused = document.activeElement && document.activeElement.getAttribute("aria-label");
    const source = sources[state.source];
    state.step = clamp(state.step, source.steps.length);
    const step = source.steps[state.step];
    state.group = clamp(state.group, step.groups.length);
    const group = step.groups[state.group];
    const hasSteps = source.kind === "rl";
    const toStep = (at, of = source) => ({ step: at, group: of.steps.length ? firstGroup(of.steps[at]) : 0 });
    const modes = ["probability", "advantage", "none"];
    controls.replaceChildren(...[
      picker("stage", sources.map(nameOf), state.source, (at) =>
        choose({ source: at, ...toStep(sources[at].steps.length - 1, sources[at]) })),
      hasSteps && picker("step", source.steps.map((of) => grouped(of.step)), state.step, (at) => choose(toStep(at))),
      picker("prompt", step.groups.map((of) => of.id), state.group, (at) => choose({ group: at })),
      el("span", { class: "gap" }),
      picker("colour", ["by probability", "by advantage", "none"], modes.indexOf(state.mode), (at) =>
        choose({ mode: modes[at] }), false),
      picker("order", ["as sampled", "by reward"], Number(state.isByReward), (at) =>
        choose({ isByReward: at === 1 }), false),
    ].filter(Boolean));
    keys.replaceChildren(...keysOf(state.mode).flat());
    place.replaceChildren(...(group ? shown(source, step, group) : []));
    const again = focused && [...controls.querySelectorAll("[aria-label]")].find((node) =>
      node.getAttribute("aria-label") === focused && !node.disabled);
    if (again) again.focus({ preventScroll: true });
  };

  const shown = (source, step, group) => {
    const rows = [...group.rows];
    const reward = (row) => (row.reward === null ? -Infinity : value(row.reward));
    if (state.isByReward) rows.sort((a, b) => reward(b) - reward(a) || a.idx - b.idx);
    const isLong = rows.some((row) => row.len > 250);
    const counts = `${grouped(group.rows.length)} of ${plural(group.size, "completion")}` +
      ` · ${grouped(step.groups.length)} of ${plural(step.groups_count, "prompt")}` +
      (source.kind === "rl"
        ? ` of the step · ${grouped(source.steps.length)} of ${plural(source.steps_count, "step")}` : "");
    return [
      el("div", { class: "asked card" },
        el("div", {}, el("div", { class: "label" }, "prompt" + (group.source ? ` from ${group.source}` : "")),
          el("p", { class: "text mono" }, group.prompt)),
        group.answer === null ? null : el("div", {}, el("div", { class: "label" }, "reference answer"),
          el("p", { class: "text mono" }, group.answer)),
        el("div", { class: "label" }, counts)),
      el("div", { class: "completions" + (isLong ? " long" : "") }, rows.map((row) => completion(row, source))),
    ];
  };

  const first = sources.findIndex((source) => source.kind === "rl");
  state.source = Math.max(0, first);
  state.step = sources[state.source].steps.length - 1;
  state.group = firstGroup(sources[state.source].steps[state.step]);
  draw();
  return [controls, el("div", { class: "controls" }, keys), place, tokenSaid];
};
