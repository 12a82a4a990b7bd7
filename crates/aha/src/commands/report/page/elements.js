// Elements and numbers. Texts of models and data sets are only ever set as text nodes and attributes.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);

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
