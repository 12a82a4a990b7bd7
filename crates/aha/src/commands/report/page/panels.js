// What each kind of stage measures, in figures.
"use strict";

const prefixes = ["reward_", "source_share_", "source_reward_"];
const docOf = (key) => {
  const prefix = data.docs[key] ? undefined : prefixes.find((start) => key.startsWith(start));
  return prefix ? data.docs[prefix + "NAME"].replace("NAME", key.slice(prefix.length)) : data.docs[key] || "";
};
const aboutOf = (keys) => keys.map(docOf).filter(Boolean).join(" ").replaceAll("`", "");

// A figure, or a few words where there is nothing to see.
const figureOf = (spec, group) => {
  const same = constant(spec.lines);
  if (same === null) return chart(spec, group);
  return `${spec.title}: ${spec.isShare ? percent(same) + " %" : measure(same)}`;
};

// Figures of one panel over these stages: most often one. With many stages what would be dashed has its own.
const figuresOf = (panel, of, taken, group) => {
  const lineOf = (curve, key, extra) => ({ name: curve.stage, hue: curve.stage, ...curve.lines[key], ...extra });
  const has = (key) => of.filter((curve) => curve.lines[key]);
  if (panel.prefix) {
    const keys = [...new Set(of.flatMap((curve) => Object.keys(curve.lines)))].sort()
      .filter((key) => key.startsWith(panel.prefix) && !taken.has(key));
    keys.forEach((key) => taken.add(key));
    const nameOf = (key) => key.slice(panel.prefix.length);
    if (!panel.isTogether) {
      return keys.map((key) => figureOf({ ...panel, title: panel.title(nameOf(key)), about: aboutOf([key]),
        lines: has(key).map((curve) => lineOf(curve, key)) }, group));
    }
    // A figure for each stage, with a line for each source.
    return of.filter((curve) => keys.some((key) => curve.lines[key])).map((curve) => figureOf({ ...panel,
      title: panel.title() + (of.length > 1 ? `: ${curve.stage}` : ""), about: aboutOf(keys), stage: curve.stage,
      hasLegend: true, lines: keys.filter((key) => curve.lines[key]).map((key, i) =>
        lineOf(curve, key, { name: nameOf(key), hue: i })) }, group));
  }
  panel.keys.forEach((key) => taken.add(key));
  const label = (i) => (panel.labels ? panel.labels[i] : "");
  const known = panel.keys.filter((key) => has(key).length);
  const isSplit = known.length > 1 && known.some((key) => has(key).length > 3);
  const parts = isSplit ? panel.keys.map((key, i) => [[key, i]]) : [panel.keys.map((key, i) => [key, i])];
  return parts.map((part) => {
    const lines = part.flatMap(([key, i]) => has(key).map((curve) =>
      lineOf(curve, key, { label: label(i), isDashed: !isSplit && i > 0 })));
    if (!lines.length) return null;
    const title = panel.title + (isSplit ? `: ${label(part[0][1])}` : "");
    const said = part.filter(([key]) => has(key).length).map(([, i]) => [label(i), i > 0]);
    const styles = said.length > 1 || (said.length && said[0][1] && !isSplit) ? said : null;
    return figureOf({ ...panel, title, lines, styles, about: aboutOf(part.map(([key]) => key)) }, group);
  });
};

const groupOf = (title, figures, isHero) => {
  const isSaid = (figure) => typeof figure === "string";
  const [drawn, said] = [figures.filter((figure) => !isSaid(figure)), figures.filter(isSaid)];
  return [
    title ? el("h3", { class: "group" }, title) : null,
    drawn.length ? el("div", { class: isHero ? heroGrid(drawn) : "grid" }, drawn) : null,
    said.length ? el("p", { class: "said" }, "The same throughout: ", said.join("; "), ".") : null,
  ];
};

const curvesSection = (kind) => {
  const of = curves.filter((curve) => curve.kind === kind);
  const group = newGroup();
  const taken = new Set(panels[kind].flatMap((part) => part.panels.flatMap((panel) => panel.keys || [])));
  const made = panels[kind].map((part) => [part, part.panels.flatMap((panel) =>
    figuresOf({ isHero: part.isHero, ...panel }, of, taken, group)).filter(Boolean)]);
  const names = [...new Set(of.flatMap((curve) => Object.keys(curve.lines)))].sort();
  // What a later version has measured besides.
  const more = names.filter((name) => !taken.has(name)).flatMap((name) =>
    figuresOf({ title: name, keys: [name], unit: "value" }, of, taken, group));
  const glossary = names.map((name) => [el("dt", {}, name), el("dd", {}, docOf(name).replaceAll("`", ""))]);
  return [
    legend(of.map(({ stage }) => ({ name: stage, hue: stage })), group),
    made.filter(([, figures]) => figures.length).map(([part, figures]) => groupOf(part.title, figures, part.isHero)),
    more.length ? groupOf("Further measures", more) : null,
    el("details", {}, el("summary", {}, "What each measure says"), el("dl", {}, glossary)),
  ];
};
