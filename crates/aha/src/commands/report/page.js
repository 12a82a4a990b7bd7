// Draws the page from its data. Texts of models and data sets are only ever set as text nodes and attributes.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);

  // ---- Elements ------------------------------------------------------------------------------------------

  const fill = (node, attrs, children) => {
    for (const [key, value] of Object.entries(attrs || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (typeof value === "function") node.addEventListener(key, value);
      else node.setAttribute(key, value === true ? "" : value);
    }
    node.append(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false));
    return node;
  };
  const el = (tag, attrs, ...children) => fill(document.createElement(tag), attrs, children);
  const svg = (tag, attrs, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attrs, children);
  const chip = (text, kind, title) => el("span", { class: "chip" + (kind ? " " + kind : ""), title }, text);

  // ---- Numbers -------------------------------------------------------------------------------------------

  const value = (x) =>
    typeof x === "string" ? { NaN: NaN, Infinity: Infinity, "-Infinity": -Infinity }[x] : x;
  const grouped = (n) => Math.round(n).toString().replace(/\B(?=(\d{3})+$)/g, ",");
  const measure = (x) => {
    const size = Math.abs(x);
    if (!Number.isFinite(x)) return String(x);
    const sign = x < 0 ? "−" : "";
    if (size >= 1000) return sign + grouped(size);
    if (size >= 100) return sign + size.toFixed(0);
    if (size >= 10) return sign + size.toFixed(1);
    if (size >= 0.001 || size === 0) return sign + Number(size.toFixed(3));
    return sign + size.toExponential(1);
  };
  const percent = (x) => (Number.isFinite(x) ? (100 * x).toFixed(1) : String(x));
  const compact = (n) => {
    if (n < 10000) return grouped(n);
    const units = [[1e9, "billion"], [1e6, "million"], [1e3, "thousand"]];
    const [size, unit] = units.find(([least]) => n >= least);
    return `${Number((n / size).toPrecision(3))} ${unit}`;
  };
  const plural = (n, one, many) => `${grouped(n)} ${n === 1 ? one : many || one + "s"}`;
  const moment = (us) => new Date(us / 1000).toISOString().slice(0, 16).replace("T", " ") + " UTC";
  const duration = (us) => {
    const s = us / 1e6;
    if (s < 60) return `${s.toFixed(1)} s`;
    if (s < 3600) return `${Math.floor(s / 60)} min ${Math.floor(s % 60)} s`;
    return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  };

  // ---- What is known of stages ---------------------------------------------------------------------------

  const { about, stages, evals, curves } = data;
  const stageOf = new Map(stages.map((stage) => [stage.name, stage]));
  const isTraining = (stage) => stage && ["rl", "sft", "reward-model", "dpo"].includes(stage.kind);
  const colours = new Map();
  for (const kind of ["rl", "reward-model", "dpo", "sft"]) {
    for (const curve of curves.filter((curve) => curve.kind === kind)) colours.set(curve.stage, colours.size % 10);
  }
  const colour = (name) => (colours.has(name) ? "s" + colours.get(name) : "s7");
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

  // ---- Overview ------------------------------------------------------------------------------------------

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
          colours.has(stage.name) ? el("span", { class: "dot" }) : null,
          stage.name, el("span", { class: "soft" }, ` ${kindOf(stage)}`),
          el("span", { class: "hidden" }, `, ${stage.status}`)))),
      figures.length ? el("div", { class: "tiles" }, figures) : null);
  };

  // ---- Stages --------------------------------------------------------------------------------------------

  const stagesTable = () => {
    const row = (stage, idx) => {
      const steps = stage.steps === null ? "" :
        grouped(stage.steps) + (stage.steps_planned > stage.steps ? ` of ${grouped(stage.steps_planned)}` : "");
      const took = stage.span_us && stage.span_us[1] > stage.span_us[0]
        ? duration(stage.span_us[1] - stage.span_us[0]) : "";
      const from = stage.models.length > 3 ? plural(stage.models.length, "model") : stage.models.join(", ");
      const dot = colours.has(stage.name) ? el("span", { class: "dot " + colour(stage.name) }) : null;
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

  // ---- Results, as the paper's tables have them ----------------------------------------------------------

  // Columns: what was asked. Of a model that was asked twice, the stage tells the columns apart.
  const datasetsOf = () => {
    const found = new Map();
    for (const row of evals) {
      const name = row.benchmark || row.dataset;
      let key = [name, row.k, row.problem_count, row.weights].join("\n");
      const taken = found.get(key);
      if (taken && taken.by.has(row.model)) key += "\n" + row.stage;
      const of = found.get(key) || { name, row, by: new Map() };
      of.by.set(row.model, row);
      found.set(key, of);
    }
    return [...found.values()];
  };

  const within = (x, se, isBest) =>
    x === null || x === undefined
      ? el("td", { class: "n soft" }, "–")
      : el("td", { class: "n" + (isBest ? " best" : "") }, percent(value(x)),
        se === null ? null : el("span", { class: "se" }, ` ± ${percent(value(se))}`));

  const plotWidth = 190;
  const plotX = (share) => 10 + share * (plotWidth - 26);
  const plotAxis = () => svg("svg", { width: plotWidth, height: 18, "aria-hidden": "true" },
    [0, 0.5, 1].map((share) => svg("text", { class: "tick", x: plotX(share), y: 14, "text-anchor": "middle" },
      share === 1 ? "100 %" : 100 * share)));
  const plot = (row, name) => {
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
    return svg("svg", { class: colour(name), width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
      "aria-label": label }, parts);
  };

  const resultsTable = () => {
    const datasets = datasetsOf();
    const models = [...new Set(evals.map((row) => row.model))];
    const roots = [...new Set(models.map(rootOf))];
    const hasPlot = datasets.length === 1;
    const bestOf = (of, root, figure) =>
      Math.max(...[...of.by.values()].filter((row) => rootOf(row.model) === root).map((row) =>
        row[figure] === null ? -1 : value(row[figure])));
    const cells = (of, model) => {
      const row = of.by.get(model);
      if (!row) return el("td", { class: "n soft", colspan: 3 }, "–");
      const isBest = (figure) => value(row[figure]) === bestOf(of, rootOf(model), figure) && models.length > 1;
      return [
        within(row.pass_at_1, row.pass_at_1_se, isBest("pass_at_1")),
        within(row.cons_at_k, row.cons_at_k_se, isBest("cons_at_k")),
        el("td", { class: "n soft" }, measure(value(row.completion_len_tokens_mean))),
      ];
    };
    const body = roots.flatMap((root) => {
      const rows = models.filter((model) => rootOf(model) === root).map((model) => {
        const stage = stageOf.get(model);
        const made = isTraining(stage) ? `${kindOf(stage)} of ${stage.models[0] || "?"}` : "as it came";
        const only = datasets[0].by.get(model);
        return el("tr", {},
          el("th", { scope: "row" }, model, stage ? el("span", { class: "about" }, stage.description) : null),
          el("td", { class: "soft wide" }, made),
          datasets.map((of) => cells(of, model)),
          hasPlot ? el("td", { class: "plot wide" }, only ? plot(only, model) : null) : null);
      });
      const columns = 2 + 3 * datasets.length + (hasPlot ? 1 : 0);
      const family = el("tr", { class: "family" }, el("th", { colspan: columns, scope: "rowgroup" },
        `models that began as ${root}`));
      return roots.length > 1 ? [family, ...rows] : rows;
    });
    const top = datasets.map((of) => el("th", { class: "dataset", scope: "colgroup", colspan: 3 + (hasPlot ? 1 : 0) },
      `${of.name}: ${plural(of.row.problem_count, "problem")}, ${plural(of.row.k, "sample")} each` +
        (of.row.weights === "int8" ? ", int8 weights" : "")));
    const heads = datasets.map((of) => [
      el("th", { class: "n", scope: "col" }, "pass@1, %"),
      el("th", { class: "n", scope: "col" }, `cons@${of.row.k}, %`),
      el("th", { class: "n", scope: "col" }, "tokens"),
      hasPlot ? el("th", { class: "plot wide", scope: "col" }, `● pass@1  ◇ cons@${of.row.k}`, plotAxis()) : null,
    ]);
    return el("div", { class: "card scroll" },
      el("table", {},
        el("thead", {},
          el("tr", {}, el("th", {}), el("th", { class: "wide" }), top),
          el("tr", {}, el("th", { scope: "col" }, "Model"), el("th", { class: "wide", scope: "col" }, "Made by"), heads)),
        el("tbody", {}, body)));
  };

  // ---- Charts --------------------------------------------------------------------------------------------

  const niceStep = (span, count) => {
    const rough = span / Math.max(1, count);
    const power = 10 ** Math.floor(Math.log10(rough));
    return [1, 2, 2.5, 5, 10].map((n) => n * power).find((step) => step >= rough * 0.999);
  };
  const ticks = (min, max, count) => {
    const step = niceStep(max - min, count);
    const found = [];
    for (let i = Math.ceil(min / step - 1e-9); i * step <= max + step * 1e-9; i++) found.push(i * step);
    return found;
  };
  const shortTick = (x) => {
    if (Math.abs(x) >= 10000) return Number((x / 1000).toPrecision(3)) + "k";
    if (x !== 0 && Math.abs(x) < 0.001) return x.toExponential(0);
    return String(Number(x.toPrecision(4)));
  };

  // A mean over neighbours, weighted by a bell that is `sigma` points wide.
  const smoothed = (values, sigma) => {
    if (sigma < 0.2) return values;
    const reach = Math.ceil(3 * sigma);
    const weights = Array.from({ length: reach + 1 }, (_, i) => Math.exp(-(i * i) / (2 * sigma * sigma)));
    return values.map((x, at) => {
      if (!Number.isFinite(x)) return x;
      let [sum, total] = [0, 0];
      for (let i = Math.max(0, at - reach); i <= Math.min(values.length - 1, at + reach); i++) {
        if (!Number.isFinite(values[i])) continue;
        const weight = weights[Math.abs(i - at)];
        sum += weight * values[i];
        total += weight;
      }
      return sum / total;
    });
  };

  // The index of the step that is nearest; steps ascend.
  const nearest = (steps, step) => {
    let [least, most] = [0, steps.length - 1];
    while (least < most) {
      const middle = (least + most) >> 1;
      if (steps[middle] < step) least = middle + 1; else most = middle;
    }
    return least > 0 && step - steps[least - 1] <= steps[least] - step ? least - 1 : least;
  };

  const path = (points) => {
    let [d, isOpen] = ["", false];
    for (const [x, y] of points) {
      if (!Number.isFinite(y)) { isOpen = false; continue; }
      d += `${isOpen ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
      isOpen = true;
    }
    return d;
  };

  // Charts that share a legend, the smoothing and the step that is pointed at.
  const newGroup = () => ({ charts: [], hidden: new Set(), smoothing: 25, step: null });
  const pointAt = (group, step, source) => {
    group.step = step;
    for (const chart of group.charts) chart.point(step, chart === source);
  };

  const chart = (spec, group) => {
    const height = spec.isHero ? 290 : 188;
    const box = el("div");
    const tip = el("div", { class: "tip", hidden: true });
    const said = el("p", { class: "hidden", "aria-live": "polite" });
    const isNothing = spec.lines.every((of) => of.values.every((x) => x === 0));
    const note = isNothing ? "0 at every step" : spec.note;
    const notes = note ? el("span", { class: "soft" }, note) : null;
    const figure = el("figure", { class: "chart card" },
      el("figcaption", {}, el("h3", { title: spec.about }, spec.title), notes), box, tip, said);
    const lines = spec.lines.map((of) => ({ ...of, values: of.values.map(value) }));
    const shown = () => lines.filter((of) => !group.hidden.has(of.stage));
    const written = (x) => (spec.isShare ? percent(x) + " %" : measure(x));
    let [frame, drawn, marks] = [null, [], null];

    const scales = (width) => {
      const all = shown();
      const steps = all.flatMap((of) => [of.steps[0], of.steps.at(-1)]);
      let [left, right] = steps.length ? [Math.min(...steps), Math.max(...steps)] : [0, 1];
      if (left === right) [left, right] = [left - 1, right + 1];
      const finite = all.flatMap((of) => of.values.filter(Number.isFinite));
      let [low, high] = [Infinity, -Infinity];
      for (const x of finite) { low = Math.min(low, x); high = Math.max(high, x); }
      if (low > high) [low, high] = [0, 1];
      if (spec.isFromZero) [low, high] = [Math.min(0, low), Math.max(0, high)];
      if (spec.max !== undefined) high = Math.max(high, spec.max);
      if (low === high) [low, high] = [low, low + (Math.abs(low) || 1)];
      const step = niceStep(high - low, spec.isHero ? 5 : 4);
      low = Math.floor(low / step + 1e-9) * step;
      high = Math.ceil(high / step - 1e-9) * step;
      const [x0, x1, y0, y1] = [46, width - 14, height - 34, 22];
      return {
        left, right, low, high, x0, x1, y0, y1,
        x: (s) => x0 + ((s - left) / (right - left)) * (x1 - x0),
        y: (v) => (Number.isFinite(v) ? y0 - ((v - low) / (high - low)) * (y0 - y1) : NaN),
        stepAt: (px) => left + ((px - x0) / (x1 - x0)) * (right - left),
      };
    };

    const axes = ({ left, right, low, high, x0, x1, y0, y1, x, y }, width) => {
      const factor = spec.isShare ? 100 : 1;
      const parts = ticks(low, high, spec.isHero ? 5 : 4).map((v) => [
        svg("line", { class: "rule", x1: x0, x2: x1, y1: y(v), y2: y(v) }),
        svg("text", { class: "tick", x: x0 - 7, y: y(v) + 4, "text-anchor": "end" }, shortTick(v * factor)),
      ]);
      for (const s of ticks(left, right, width > 420 ? 8 : 4).filter(Number.isInteger)) {
        parts.push(svg("text", { class: "tick", x: x(s), y: y0 + 17, "text-anchor": "middle" }, shortTick(s)));
      }
      parts.push(svg("line", { class: "axis", x1: x0, x2: x1, y1: y0, y2: y0 }));
      parts.push(svg("text", { class: "unit", x: 2, y: y1 - 10 }, spec.unit));
      parts.push(svg("text", { class: "unit", x: x1, y: y0 + 31, "text-anchor": "end" }, "step"));
      return parts;
    };

    const draw = () => {
      const width = box.clientWidth || 320;
      frame = scales(width);
      // The same for every line, so that they compare.
      const longest = Math.max(0, ...shown().map((of) => of.steps.length));
      const sigma = spec.isExact ? 0 : (group.smoothing / 100) * longest * 0.12;
      drawn = shown().map((of) => ({ ...of, smooth: smoothed(of.values, sigma) }));
      const parts = axes(frame, width);
      for (const of of drawn) {
        const raw = of.steps.map((s, i) => [frame.x(s), frame.y(of.values[i])]);
        const isSparse = of.steps.length <= 80;
        const dashed = of.isDashed ? " dashed" : "";
        const lost = of.steps.filter((_, i) => !Number.isFinite(of.values[i]));
        parts.push(svg("g", { class: colour(of.stage) },
          isSparse
            ? svg("g", { class: "raws" }, raw.filter(([, y]) => Number.isFinite(y)).map(([cx, cy]) =>
              svg("circle", { cx: cx.toFixed(1), cy: cy.toFixed(1), r: of.isDashed ? 1.2 : 1.8 })))
            : svg("path", { class: "raw", d: path(raw) }),
          svg("path", { class: "smooth" + dashed,
            d: path(of.steps.map((s, i) => [frame.x(s), frame.y(of.smooth[i])])) }),
          of.steps.length === 1 && Number.isFinite(of.values[0])
            ? svg("circle", { class: "alone" + dashed, cx: raw[0][0], cy: raw[0][1], r: 4 }) : null,
          lost.slice(0, 200).map((s) => {
            const [x, y] = [frame.x(s), frame.y0 - 5];
            return svg("path", { class: "lost", d: `M${x - 3} ${y - 3}l6 6m0-6l-6 6` });
          })));
      }
      if (spec.isHero) parts.push(endNames());
      marks = svg("g");
      const names = [...new Set(drawn.map((of) => of.stage))].join(", ");
      const picture = svg("svg", { height, viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0,
        "aria-label": `${spec.title}, ${spec.unit} by step: ${names}. Arrow keys read values.`,
        pointermove: (event) => {
          const left = picture.getBoundingClientRect().left;
          pointAt(group, Math.round(frame.stepAt(event.clientX - left)), self);
        },
        pointerleave: () => pointAt(group, null, self),
        blur: () => pointAt(group, null, self),
        keydown: move,
      }, parts, marks);
      box.replaceChildren(picture);
    };

    // Names at the ends of solid lines, moved apart.
    const endNames = () => {
      const solid = drawn.filter((of) => !of.isDashed);
      const ends = solid.filter(() => solid.length > 1).map((of) => {
        const last = of.smooth.findLastIndex(Number.isFinite);
        if (last < 0) return null;
        const [x, y] = [frame.x(of.steps[last]), frame.y(of.smooth[last])];
        // Beside the end where there is room, else above it.
        const isBeside = x + 8 * of.stage.length + 8 < frame.x1;
        return { of, isBeside, x: isBeside ? x + 7 : x - 2, y: isBeside ? y + 4 : y - 9 };
      }).filter(Boolean).sort((a, b) => a.y - b.y);
      for (let i = 1; i < ends.length; i++) {
        const isNear = Math.abs(ends[i].x - ends[i - 1].x) < 90;
        if (isNear) ends[i].y = Math.max(ends[i].y, ends[i - 1].y + 14);
      }
      return ends.map(({ of, isBeside, x, y }) =>
        svg("g", { class: colour(of.stage) },
          svg("text", { class: "endname", x, y, "text-anchor": isBeside ? "start" : "end" }, of.stage)));
    };

    const move = (event) => {
      const steps = [...new Set(drawn.flatMap((of) => of.steps))].sort((a, b) => a - b);
      if (!steps.length) return;
      const at = group.step === null ? -1 : nearest(steps, group.step);
      const to = { ArrowRight: at + 1, ArrowLeft: at < 0 ? steps.length - 1 : at - 1, Home: 0, End: steps.length - 1 };
      if (to[event.key] === undefined) return;
      event.preventDefault();
      pointAt(group, steps[Math.min(steps.length - 1, Math.max(0, to[event.key]))], self);
    };

    const point = (step, isSource) => {
      if (!frame || !marks) return;
      marks.replaceChildren();
      tip.hidden = true;
      if (step === null || step < frame.left || step > frame.right) return;
      const hits = drawn.map((of) => ({ of, i: nearest(of.steps, step) }))
        .filter(({ of, i }) => Math.abs(of.steps[i] - step) <= Math.max(of.per, (frame.right - frame.left) / 40));
      const x = frame.x(step);
      marks.append(svg("line", { class: "cursor", x1: x, x2: x, y1: frame.y1, y2: frame.y0 }));
      for (const { of, i } of hits) {
        const y = frame.y(of.smooth[i]);
        if (!Number.isFinite(y)) continue;
        marks.append(svg("g", { class: colour(of.stage) },
          svg("circle", { class: "at" + (of.isDashed ? " dashed" : ""), cx: frame.x(of.steps[i]), cy: y, r: 4 })));
      }
      if (isSource && hits.length) showTip(step, x, hits);
    };

    const showTip = (step, x, hits) => {
      const rows = hits.map(({ of, i }) =>
        el("tr", { class: colour(of.stage) },
          el("td", {}, el("span", { class: "dot" }), of.stage + (of.label ? ` ${of.label}` : "")),
          el("td", { class: "n" }, written(of.values[i]))));
      const per = Math.max(...hits.map(({ of }) => of.per));
      const head = `step ${grouped(step)}` + (per > 1 ? `, means of ${per} steps` : "");
      tip.replaceChildren(el("div", { class: "soft" }, head), el("table", {}, el("tbody", {}, rows)));
      tip.hidden = false;
      if (document.activeElement && box.contains(document.activeElement)) {
        const all = hits.map(({ of, i }) => `${of.stage} ${of.label || ""} ${written(of.values[i])}`);
        said.textContent = `${head}: ${all.join(", ")}`;
      }
      const isRight = x > frame.x1 * 0.55;
      tip.style.left = isRight ? "" : `${x + 28}px`;
      tip.style.right = isRight ? `${figure.clientWidth - x - 6}px` : "";
      tip.style.top = "58px";
    };

    const self = { draw, point };
    group.charts.push(self);
    let width = 0;
    new ResizeObserver(() => {
      if (box.clientWidth === 0 || box.clientWidth === width) return;
      width = box.clientWidth;
      draw();
    }).observe(box);
    return figure;
  };

  // The panels of a kind of stage, in order. `keys` are metrics, the second one dashed.
  const share = { unit: "%", isShare: true, isFromZero: true };
  const panels = {
    rl: [
      { title: "Accuracy", note: "solid: each completion (pass@1); dashed: majority of the group (cons@k)",
        keys: ["accuracy", "cons_at_k"], labels: ["", "cons@k"], isHero: true, ...share, unit: "% right", max: 1 },
      { title: "Response length", keys: ["completion_len_tokens"], unit: "tokens per completion", isHero: true,
        isFromZero: true },
      { title: "Reward", keys: ["reward"], unit: "mean reward", isFromZero: true },
      { title: "KL to the reference", keys: ["kl"], unit: "nats per token", isFromZero: true },
      { title: "Divergence from the teacher", keys: ["teacher_kl"], unit: "nats per token", isFromZero: true },
      { title: "Entropy", keys: ["entropy"], unit: "nats per token", isFromZero: true },
      { title: "Clipped tokens", keys: ["clip_high_share", "clip_low_share"], labels: ["above", "below"], ...share,
        unit: "% of tokens; dashed: clipped below" },
      { title: "Gradient norm", keys: ["grad_norm"], unit: "global norm before clipping", isFromZero: true },
      { title: "Groups without signal", keys: ["no_signal_share"], ...share, unit: "% of groups" },
      { title: "Completions cut at the limit", keys: ["truncated_share"], ...share, unit: "% of completions" },
      { title: "Reflection words", keys: ["reflections_mean"], unit: "per completion", isFromZero: true },
      { title: "Mixed language", keys: ["foreign_share"], ...share, unit: "% of words not in the target language" },
      { title: "Speed", keys: ["tokens_per_second"], unit: "tokens per second", isFromZero: true },
    ],
    sft: [
      { title: "Loss", keys: ["loss"], unit: "nats per token", isFromZero: true },
      { title: "Gradient norm", keys: ["grad_norm"], unit: "global norm before clipping", isFromZero: true },
      { title: "Learning rate", keys: ["lr"], unit: "per optimizer step", isFromZero: true, isExact: true },
      { title: "Speed", keys: ["tokens_per_second"], unit: "tokens per second", isFromZero: true },
    ],
    "reward-model": [
      { title: "Accuracy", keys: ["accuracy", "held_out_accuracy"], labels: ["", "held out"], ...share,
        unit: "% of pairs; dashed: held out", max: 1 },
      { title: "Loss", keys: ["loss", "held_out_loss"], labels: ["", "held out"],
        unit: "nats per pair; dashed: held out", isFromZero: true },
      { title: "Margin", keys: ["margin", "held_out_margin"], labels: ["", "held out"],
        unit: "chosen less rejected; dashed: held out", isFromZero: true },
      { title: "Gradient norm", keys: ["grad_norm"], unit: "global norm before clipping", isFromZero: true },
      { title: "Speed", keys: ["tokens_per_second"], unit: "tokens per second", isFromZero: true },
    ],
    dpo: [
      { title: "Accuracy", keys: ["accuracy", "held_out_accuracy"], labels: ["", "held out"], ...share,
        unit: "% of pairs; dashed: held out", max: 1 },
      { title: "Loss", keys: ["loss", "held_out_loss"], labels: ["", "held out"],
        unit: "per pair; dashed: held out", isFromZero: true },
      { title: "Margin", keys: ["margin", "held_out_margin"], labels: ["", "held out"],
        unit: "implicit reward, chosen less rejected; dashed: held out", isFromZero: true },
      { title: "Implicit rewards", keys: ["reward_chosen", "reward_rejected"], labels: ["chosen", "rejected"],
        unit: "beta times the log-ratio; dashed: rejected" },
      { title: "Log-probs", keys: ["logp_chosen", "logp_rejected"], labels: ["chosen", "rejected"],
        unit: "nats per completion; dashed: rejected" },
      { title: "Gradient norm", keys: ["grad_norm"], unit: "global norm before clipping", isFromZero: true },
      { title: "Speed", keys: ["tokens_per_second"], unit: "tokens per second", isFromZero: true },
    ],
  };

  const docOf = (key) => data.docs[key] ||
    (key.startsWith("reward_") ? data.docs.reward_NAME.replace("NAME", key.slice(7)) : "");

  const curvesSection = (kind) => {
    const of = curves.filter((curve) => curve.kind === kind);
    const names = [...new Set(of.flatMap((curve) => Object.keys(curve.lines)))].sort();
    const specs = [...panels[kind]];
    const parts = names.filter((name) => kind === "rl" && name.startsWith("reward_"));
    const rewardAt = specs.findIndex((spec) => spec.keys[0] === "reward");
    specs.splice(rewardAt + 1, 0, ...parts.map((name) => (
      { title: `Reward: ${name.slice(7)}`, keys: [name], unit: "mean score", isFromZero: true })));
    const known = new Set(specs.flatMap((spec) => spec.keys));
    const others = names.filter((name) => !known.has(name)).map((name) => (
      { title: name, keys: [name], isExact: ["lr", "policy_version"].includes(name),
        ...(name.endsWith("_share") ? share : { unit: name.endsWith("_seconds") ? "seconds" : "value" }) }));
    const group = newGroup();
    const made = (spec) => {
      const lines = spec.keys.flatMap((key, i) => of.filter((curve) => curve.lines[key]).map((curve) => (
        { stage: curve.stage, label: spec.labels && spec.labels[i], isDashed: i > 0, ...curve.lines[key] })));
      const about = spec.keys.map(docOf).filter(Boolean).join(" ").replaceAll("`", "");
      return lines.length ? chart({ ...spec, lines, about }, group) : null;
    };
    const heroes = specs.filter((spec) => spec.isHero).map(made).filter(Boolean);
    const small = specs.filter((spec) => !spec.isHero).map(made).filter(Boolean);
    const more = others.map(made).filter(Boolean);
    const glossary = names.map((name) => [el("dt", {}, name), el("dd", {}, docOf(name).replaceAll("`", ""))]);
    return [
      legend(of, group),
      heroes.length ? el("div", { class: "grid hero" }, heroes) : null,
      el("div", { class: "grid" }, small),
      more.length ? el("details", {}, el("summary", {}, `${plural(more.length, "further measure")}`),
        el("div", { class: "grid" }, more)) : null,
      el("details", {}, el("summary", {}, "What each measure says"), el("dl", {}, glossary)),
    ];
  };

  const legend = (of, group) => {
    const redraw = () => group.charts.forEach((chart) => chart.draw());
    const toggle = (stage) => (event) => {
      const isHidden = group.hidden.delete(stage) ? false : Boolean(group.hidden.add(stage));
      event.currentTarget.setAttribute("aria-pressed", String(!isHidden));
      redraw();
    };
    const buttons = of.map(({ stage }) =>
      el("button", { type: "button", class: colour(stage), "aria-pressed": "true", click: toggle(stage) },
        el("span", { class: "dot" }), stage));
    const range = el("input", { type: "range", min: 0, max: 100, value: group.smoothing, "aria-label": "Smoothing",
      input: (event) => { group.smoothing = Number(event.currentTarget.value); redraw(); } });
    return el("div", { class: "controls" }, buttons, el("span", { class: "gap" }),
      el("label", { class: "soft", title: "Lines are means weighted by a bell around each step; points are measures" },
        "Smoothing ", range));
  };

  // ---- Aha moments ---------------------------------------------------------------------------------------

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
    const none = data.moments.filter(({ reward, moments }) => reward && !moments.length).map(({ stage }) => stage);
    const unknown = data.moments.filter(({ reward }) => !reward).map(({ stage }) => stage);
    const empty = [
      none.length ? el("div", {}, `No right answer of ${none.join(", ")} has a reflection word.`) : null,
      unknown.length ? el("div", {}, `Of ${unknown.join(", ")} it isn't known which answers are right: ` +
        "no reward of the stage compares with answers.") : null,
    ].filter(Boolean);
    return [
      cards.length ? el("div", { class: "moments" }, cards) : null,
      empty.length ? el("div", { class: "empty card" }, empty,
        el("div", { class: "words" }, `Looked for: ${words}; and what is like them.`)) : null,
    ];
  };

  // ---- Browser of completions ----------------------------------------------------------------------------

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
      return scale(["b4", "b3", "b2", "", "a2", "a3", "a4"], labels, "advantage of the completion", "");
    }
    return [];
  };

  const state = { source: 0, step: 0, group: 0, mode: "probability", isByReward: false };

  const tokenTip = el("div", { class: "tip", hidden: true });
  document.body.append(tokenTip);
  const tokenSaid = el("p", { class: "hidden", "aria-live": "polite" });

  const showToken = (span, row, at) => {
    const { t, p } = row.tokens;
    const count = pieces.counts[t[at]];
    const kind = count === 0 ? "special token" : count > 1 ? `${count} tokens of one character` : "token";
    const p100 = p[at];
    const likely = p100 === null ? "no finite log-prob"
      : `probability ${measure(Math.exp(p100 / 100))}, log-prob ${(p100 / 100).toFixed(2).replace("-", "−")}`;
    const left = row.tokens.gap && at >= row.tokens.gap[0] ? row.tokens.gap[1] : 0;
    const place = `${kind} ${grouped(at + 1 + left)} of ${grouped(row.len)}`;
    const adv = row.adv === null ? "no advantage" : `advantage ${measure(value(row.adv))}`;
    tokenTip.replaceChildren(
      el("div", { class: "mono" }, JSON.stringify(pieces.texts[t[at]])),
      el("div", {}, likely), el("div", { class: "soft" }, `${adv} · ${place}`));
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
    const spans = tokens.t.map((piece, at) => {
      const of = state.mode === "probability" ? surpriseClass(tokens.p[at])
        : state.mode === "advantage" ? advantageClass(row.adv) : "";
      const special = pieces.counts[piece] === 0 ? " special" : "";
      return el("span", { class: of + special || null, "data-at": at }, pieces.texts[piece]);
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
        (source.kind === "rl" ? ` of the step · ${grouped(source.steps.length)} of ${plural(source.steps_count, "step")}` : "");
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

  // ---- The page ------------------------------------------------------------------------------------------

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
  const has = (kind) => curves.some((curve) => curve.kind === kind);
  if (has("rl")) {
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
  if (has("sft")) section("sft", "Fine-tuning", "By optimizer step.", curvesSection("sft"));
  if (has("reward-model")) {
    section("reward-models", "Reward models", "By optimizer step.", curvesSection("reward-model"));
  }
  if (has("dpo")) {
    section("dpo", "Direct preference optimization", "By optimizer step.", curvesSection("dpo"));
  }
  section("stages", "Stages", "The pipeline, in the order in which it runs.", stagesTable(),
    data.pipeline === null ? null : el("details", {}, el("summary", {}, "The pipeline as it ran, defaults included"),
      el("pre", { class: "file card" }, data.pipeline)));
})();
