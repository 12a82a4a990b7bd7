// Numbers and times as people read them, and lines smoothed. The daemon's dashboard is built with this file too.
"use strict";

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
  return sign + size.toExponential(1).replace(".0e", "e");
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

// A number at an axis whose ticks are `step` apart and reach up to `most`: as many places as they need.
const tickText = (x, step, most) => {
  if (Math.abs(x) < step * 1e-6) return "0";
  const sign = x < 0 ? "−" : "";
  const size = Math.abs(x);
  if (size >= 1000 && size < 10000 && step >= 1) return sign + grouped(size);
  if (size >= 10000 && step >= 100) return `${sign}${Number((size / 1000).toPrecision(4))}k`;
  if (most < 0.01) {
    const [digits, power] = size.toExponential(1).split("e");
    return `${sign}${Number(digits)}e${power.replace("+", "")}`;
  }
  const places = Math.max(0, Math.ceil(-Math.log10(step) - 1e-9));
  const needed = Math.abs(step * 10 ** places - Math.round(step * 10 ** places)) > 1e-6 ? places + 1 : places;
  return sign + size.toFixed(needed);
};
const shortTick = (x) => {
  if (Math.abs(x) >= 10000) return Number((x / 1000).toPrecision(3)) + "k";
  if (Math.abs(x) >= 1000) return grouped(x);
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
