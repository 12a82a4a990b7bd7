// Figures: lines over steps or samples, with axes, a legend and values that can be pointed at.
"use strict";

const niceStep = (span, count) => {
  const rough = span / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 2.5, 5, 10].map((n) => n * power).find((step) => step >= rough * 0.999);
};
const ticks = (min, max, step) => {
  const found = [];
  for (let i = Math.ceil(min / step - 1e-9); i * step <= max + step * 1e-9; i++) found.push(i * step);
  return found;
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

// Charts that share a legend, the smoothing and the place that is pointed at.
const newGroup = () => ({ charts: [], hidden: new Set(), smoothing: 25, at: null });
const pointAt = (group, at, source) => {
  group.at = at;
  for (const chart of group.charts) chart.point(at, chart === source);
};

// The grid of large figures: three of them side by side, else two.
const heroGrid = (figures) => "grid hero" + (figures.length % 3 === 0 ? " three" : "");

// Of lines that are the same number throughout, that number: they need no figure.
const constant = (lines) => {
  const values = lines.flatMap((of) => of.values.map(value));
  return values.length > lines.length && values.every((x) => x === values[0]) ? values[0] : null;
};

// A figure. `spec.lines` have a name, a hue (a stage's or a model's name, or a number), `steps` and `values`; where
// the axis isn't one of steps, `spec.x` has its unit, and whether it is one of powers of two.
const chart = (spec, group) => {
  const height = spec.isHero ? 290 : 192;
  const axis = { unit: "step", isLog: false, ...spec.x };
  const place = axis.isLog ? Math.log2 : (x) => x;
  const box = el("div", { class: "plotted" });
  const tip = el("div", { class: "tip", hidden: true });
  const said = el("p", { class: "hidden", "aria-live": "polite" });
  const keys = spec.hasLegend
    ? el("div", { class: "keyline" }, spec.lines.map((of) =>
      el("span", { class: hue(of.hue) }, el("span", { class: "dot" }), of.name)))
    : spec.styles
      ? el("div", { class: "keyline" }, spec.styles.map(([label, isDashed]) =>
        el("span", {}, svg("svg", { width: 22, height: 8, "aria-hidden": "true" },
          svg("line", { class: "swatch" + (isDashed ? " dashed" : ""), x1: 1, x2: 21, y1: 4, y2: 4 })), label)))
      : null;
  const figure = el("figure", { class: "chart card" },
    el("figcaption", {}, el("h4", { title: spec.about }, spec.title)), keys, box, tip, said);
  const lines = spec.lines.map((of) => ({ per: 1, ...of, values: of.values.map(value) }));
  const shown = () => lines.filter((of) => !group.hidden.has(spec.stage || of.name));
  // Lines with their names beside them: of many lines none, which the legend names.
  const named = () => {
    const solid = shown().filter((of) => !of.isDashed);
    return spec.isHero && !spec.x && solid.length > 1 && solid.length <= 5 ? solid : [];
  };
  const shortName = ({ name }) => (name.length > 20 ? name.slice(0, 19) + "…" : name);
  const written = (x) => (spec.isShare ? percent(x) + " %" : measure(x));
  let [frame, drawn, marks] = [null, [], null];

  const scales = (width) => {
    const all = shown();
    const steps = all.flatMap((of) => [of.steps[0], of.steps.at(-1)].map(place));
    let [left, right] = steps.length ? [Math.min(...steps), Math.max(...steps)] : [0, 1];
    if (left === right) [left, right] = [left - 1, right + 1];
    if (axis.isFromZero) left = Math.min(0, left);
    const reach = (of, sign) => of.values.map((x, i) => x + sign * ((of.errors && value(of.errors[i])) || 0));
    const finite = all.flatMap((of) => [...reach(of, -1), ...reach(of, 1)].filter(Number.isFinite));
    let [low, high] = [Infinity, -Infinity];
    for (const x of finite) { low = Math.min(low, x); high = Math.max(high, x); }
    if (low > high) [low, high] = [0, 1];
    if (spec.isShare) [low, high] = [Math.max(0, low), Math.min(1, high)];
    if (spec.isFromZero) [low, high] = [Math.min(0, low), Math.max(0, high)];
    if (spec.max !== undefined) high = Math.max(high, spec.max);
    if (spec.min !== undefined) low = Math.min(low, spec.min);
    if (high - low < 1e-9 * Math.max(Math.abs(low), Math.abs(high), 1e-6)) {
      const size = Math.abs(high) || 1;
      [low, high] = spec.isFromZero && low >= 0 ? [0, size] : [low - size / 2, high + size / 2];
    }
    const step = niceStep(high - low, spec.isHero ? 5 : 4);
    low = Math.floor(low / step + 1e-9) * step;
    high = Math.ceil(high / step - 1e-9) * step;
    const factor = spec.isShare ? 100 : 1;
    const most = factor * Math.max(Math.abs(low), Math.abs(high));
    const label = (v) => tickText(v * factor, step * factor, most);
    const labels = ticks(low, high, step).map(label);
    const x0 = Math.max(34, 14 + 6.6 * Math.max(...labels.map((text) => text.length)));
    const nameLen = Math.max(0, ...named().map((of) => shortName(of).length));
    const [x1, y0, y1] = [width - 14 - Math.min(width / 3, 7.4 * nameLen), height - 34, 27];
    return {
      left, right, low, high, step, label, x0, x1, y0, y1,
      x: (s) => x0 + ((place(s) - left) / (right - left)) * (x1 - x0),
      y: (v) => (Number.isFinite(v) ? y0 - ((v - low) / (high - low)) * (y0 - y1) : NaN),
      at: (px) => {
        const found = left + ((px - x0) / (x1 - x0)) * (right - left);
        return axis.isLog ? 2 ** found : found;
      },
    };
  };

  const xTicks = ({ left, right, x0, x1 }) => {
    const room = Math.max(2, Math.floor((x1 - x0) / (axis.isLog ? 34 : 46)));
    if (axis.isLog) {
      const powers = ticks(left, right, 1).filter(Number.isInteger);
      const every = Math.ceil(powers.length / room);
      return powers.filter((_, i) => i % every === 0).map((power) => 2 ** power);
    }
    return ticks(left, right, niceStep(right - left, Math.min(8, room))).filter(Number.isInteger);
  };

  const axes = (scale) => {
    const { low, high, step, label, x0, x1, y0, y1, x, y } = scale;
    const parts = ticks(low, high, step).map((v) => [
      svg("line", { class: "rule", x1: x0, x2: x1, y1: y(v), y2: y(v) }),
      svg("text", { class: "tick", x: x0 - 7, y: y(v) + 4, "text-anchor": "end" }, label(v)),
    ]);
    for (const s of xTicks(scale)) {
      const isLast = x(s) > x1 - 8;
      parts.push(svg("line", { class: "axis", x1: x(s), x2: x(s), y1: y0, y2: y0 + 4 }));
      parts.push(svg("text", { class: "tick", x: isLast ? x1 + 8 : x(s), y: y0 + 17,
        "text-anchor": isLast ? "end" : "middle" }, shortTick(s)));
    }
    parts.push(svg("line", { class: "axis", x1: x0, x2: x1, y1: y0, y2: y0 }));
    if (low < 0 && high > 0) parts.push(svg("line", { class: "axis", x1: x0, x2: x1, y1: y(0), y2: y(0) }));
    parts.push(svg("text", { class: "unit", x: 2, y: 12 }, spec.unit));
    parts.push(svg("text", { class: "unit", x: x1, y: y0 + 31, "text-anchor": "end" }, axis.unit));
    return parts;
  };

  const draw = () => {
    const width = box.clientWidth || 320;
    frame = scales(width);
    // The same for every line, so that they compare.
    const longest = Math.max(0, ...shown().map((of) => of.steps.length));
    const sigma = spec.isExact ? 0 : (group.smoothing / 100) * longest * 0.12;
    drawn = shown().map((of) => ({ ...of, smooth: smoothed(of.values, sigma) }));
    const parts = axes(frame);
    for (const of of drawn) parts.push(lineOf(of));
    parts.push(endNames());
    marks = svg("g");
    const names = [...new Set(drawn.map((of) => of.name))].join(", ");
    const picture = svg("svg", { height, viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0,
      "aria-label": `${spec.title}, ${spec.unit} by ${axis.unit}: ${names}. Arrow keys read values.`,
      pointermove: (event) => {
        const px = event.clientX - picture.getBoundingClientRect().left;
        const all = drawn.map((of) => of.steps[nearest(of.steps, frame.at(px))]);
        const isNearer = (a, b) => Math.abs(frame.x(a) - px) < Math.abs(frame.x(b) - px);
        pointAt(group, all.length ? all.reduce((a, b) => (isNearer(b, a) ? b : a)) : null, self);
      },
      pointerleave: () => pointAt(group, null, self),
      blur: () => pointAt(group, null, self),
      keydown: move,
    }, parts, marks);
    box.replaceChildren(picture);
  };

  const lineOf = (of) => {
    const raw = of.steps.map((s, i) => [frame.x(s), frame.y(of.values[i])]);
    const isSparse = of.steps.length <= 80;
    const dashed = of.isDashed ? " dashed" : "";
    const lost = of.steps.filter((_, i) => !Number.isFinite(of.values[i]));
    const whiskers = (of.errors || []).map((error, i) => {
      const [x, reach] = [raw[i][0].toFixed(1), value(error) || 0];
      const inside = (v) => Math.min(frame.high, Math.max(frame.low, v));
      const ends = [inside(of.values[i] - reach), inside(of.values[i] + reach)];
      return svg("line", { class: "whisker", x1: x, x2: x, y1: frame.y(ends[0]), y2: frame.y(ends[1]) });
    });
    const dot = spec.isExact && spec.x ? 3 : of.isDashed ? 1.2 : 1.8;
    return svg("g", { class: hue(of.hue) }, whiskers,
      isSparse
        ? svg("g", { class: dot === 3 ? "alone" : "raws" }, raw.filter(([, y]) => Number.isFinite(y)).map(
          ([cx, cy]) => svg("circle", { cx: cx.toFixed(1), cy: cy.toFixed(1), r: dot })))
        : svg("path", { class: "raw", d: path(raw) }),
      svg("path", { class: "smooth" + dashed,
        d: path(of.steps.map((s, i) => [frame.x(s), frame.y(of.smooth[i])])) }),
      of.steps.length === 1 && Number.isFinite(of.values[0])
        ? svg("circle", { class: "alone" + dashed, cx: raw[0][0], cy: raw[0][1], r: 4 }) : null,
      lost.slice(0, 200).map((s) => {
        const [x, y] = [frame.x(s), frame.y0 - 5];
        return svg("path", { class: "lost", d: `M${x - 3} ${y - 3}l6 6m0-6l-6 6` });
      }));
  };

  // Names beside the ends of solid lines, moved apart.
  const endNames = () => {
    const names = new Set(named().map((of) => of.name));
    const ends = drawn.filter((of) => names.has(of.name) && !of.isDashed).map((of) => {
      const last = of.smooth.findLastIndex(Number.isFinite);
      return last < 0 ? null : { of, x: frame.x(of.steps[last]) + 7, y: frame.y(of.smooth[last]) + 4 };
    }).filter(Boolean).sort((a, b) => a.y - b.y);
    const isNear = (a, b) => Math.abs(a.x - b.x) < 90;
    for (let i = 1; i < ends.length; i++) {
      if (isNear(ends[i], ends[i - 1])) ends[i].y = Math.max(ends[i].y, ends[i - 1].y + 14);
    }
    for (let i = ends.length - 1, most = frame.y0; i >= 0; i--) {
      ends[i].y = Math.min(ends[i].y, most);
      most = i > 0 && isNear(ends[i], ends[i - 1]) ? ends[i].y - 14 : frame.y0;
    }
    return ends.map(({ of, x, y }) =>
      svg("g", { class: hue(of.hue) }, svg("text", { class: "endname", x, y }, shortName(of))));
  };

  const move = (event) => {
    const steps = [...new Set(drawn.flatMap((of) => of.steps))].sort((a, b) => a - b);
    if (!steps.length) return;
    const at = group.at === null ? -1 : nearest(steps, group.at);
    const to = { ArrowRight: at + 1, ArrowLeft: at < 0 ? steps.length - 1 : at - 1, Home: 0, End: steps.length - 1 };
    if (to[event.key] === undefined) return;
    event.preventDefault();
    pointAt(group, steps[Math.min(steps.length - 1, Math.max(0, to[event.key]))], self);
  };

  const point = (at, isSource) => {
    if (!frame || !marks) return;
    marks.replaceChildren();
    tip.hidden = true;
    if (at === null || place(at) < frame.left || place(at) > frame.right) return;
    const x = frame.x(at);
    const hits = drawn.map((of) => ({ of, i: nearest(of.steps, at) }))
      .filter(({ of, i }) => Math.abs(of.steps[i] - at) < of.per || Math.abs(frame.x(of.steps[i]) - x) <= 8);
    marks.append(svg("line", { class: "cursor", x1: x, x2: x, y1: frame.y1, y2: frame.y0 }));
    for (const { of, i } of hits) {
      const y = frame.y(of.smooth[i]);
      if (!Number.isFinite(y)) continue;
      marks.append(svg("g", { class: hue(of.hue) },
        svg("circle", { class: "at" + (of.isDashed ? " dashed" : ""), cx: frame.x(of.steps[i]), cy: y, r: 4 })));
    }
    if (isSource && hits.length) showTip(at, x, hits);
  };

  const showTip = (at, x, hits) => {
    const error = ({ of, i }) => (of.errors && value(of.errors[i]) ? ` ± ${written(value(of.errors[i]))}` : "");
    const named = ({ of, i }) => [of.name, of.notes && of.notes[i], of.label].filter(Boolean).join(", ");
    const rows = hits.map((hit) =>
      el("tr", { class: hue(hit.of.hue) },
        el("td", {}, el("span", { class: "dot" }), named(hit)),
        el("td", { class: "n" }, written(hit.of.values[hit.i]) + error(hit))));
    const per = Math.max(...hits.map(({ of }) => of.per));
    const where = spec.x ? `${measure(at)} ${axis.unit}` : `step ${grouped(at)}`;
    const head = where + (per > 1 ? `, means of ${per} steps` : "");
    tip.replaceChildren(el("div", { class: "soft" }, head), el("table", {}, el("tbody", {}, rows)));
    tip.hidden = false;
    if (document.activeElement && box.contains(document.activeElement)) {
      said.textContent = `${head}: ${hits.map((hit) => `${named(hit)} ${written(hit.of.values[hit.i])}`).join(", ")}`;
    }
    const isRight = x > (frame.x0 + frame.x1) / 2;
    tip.style.left = isRight ? "" : `${x + 28}px`;
    tip.style.right = isRight ? `${figure.clientWidth - x - 6}px` : "";
    tip.style.top = `${box.offsetTop + 22}px`;
  };

  const self = { draw, point };
  group.charts.push(self);
  let width = 0;
  const fit = () => {
    if (box.clientWidth === 0 || box.clientWidth === width) return;
    width = box.clientWidth;
    draw();
  };
  // In the next frame: what is drawn while sizes are being told changes sizes again.
  new ResizeObserver(() => requestAnimationFrame(fit)).observe(box);
  return figure;
};

const legend = (of, group, hasSmoothing = true) => {
  const redraw = () => group.charts.forEach((chart) => chart.draw());
  const toggle = (name) => (event) => {
    const isHidden = group.hidden.delete(name) ? false : Boolean(group.hidden.add(name));
    event.currentTarget.setAttribute("aria-pressed", String(!isHidden));
    redraw();
  };
  const buttons = of.map((line) =>
    el("button", { type: "button", class: hue(line.hue), "aria-pressed": "true", click: toggle(line.name) },
      el("span", { class: "dot" }), line.name));
  const range = el("input", { type: "range", min: 0, max: 100, value: group.smoothing, "aria-label": "Smoothing",
    input: (event) => { group.smoothing = Number(event.currentTarget.value); redraw(); } });
  return el("div", { class: "controls" }, buttons, el("span", { class: "gap" }),
    hasSmoothing ? el("label", { class: "soft", title: "Lines are means weighted by a bell around each step; " +
      "points are measures" }, "Smoothing ", range) : null);
};
