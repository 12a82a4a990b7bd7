// Elements. Texts of models and data sets are only ever set as text nodes and attributes.
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
