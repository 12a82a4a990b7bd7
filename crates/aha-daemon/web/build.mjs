// Bundles the dashboard into ../assets, with the licences of what it is bundled with and the digests of all sources.
import { createHash } from "node:crypto";
import { copyFileSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join, relative, resolve } from "node:path";
import { build } from "esbuild";
import { report, reportFiles } from "./report.mjs";

const web = import.meta.dirname;
const crate = resolve(web, "..");
const assets = join(crate, "assets");
const shared = ["theme.css", "page.css", "figures.js", "numbers.js"].map((name) => join(report, name));

const { metafile } = await build({
  absWorkingDir: web,
  entryPoints: { dashboard: "src/main.tsx" },
  outdir: assets,
  bundle: true,
  minify: true,
  format: "esm",
  target: ["chrome123", "firefox121", "safari17.5"],
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "none",
  metafile: true,
  plugins: [reportFiles],
});

mkdirSync(assets, { recursive: true });
for (const name of ["index.html", "icon.svg"]) copyFileSync(join(web, name), join(assets, name));

const packages = Object.keys(metafile.inputs).map((path) => path.match(/node_modules\/((?:@[^/]+\/)?[^/]+)/)?.[1]);
const licences = [...new Set(packages.filter(Boolean))].sort().map((name) => {
  const { version, license } = JSON.parse(readFileSync(join(web, "node_modules", name, "package.json"), "utf8"));
  const text = readFileSync(join(web, "node_modules", name, "LICENSE"), "utf8");
  return `${name} ${version} (${license})\n\n${text.trim()}\n`;
});
writeFileSync(join(assets, "licences.txt"), licences.join(`\n${"-".repeat(80)}\n\n`));

const filesIn = (folder) =>
  readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    if (entry.name === "node_modules") return [];
    const path = join(folder, entry.name);
    return entry.isDirectory() ? filesIn(path) : [path];
  });
const digest = (path) => createHash("sha256").update(readFileSync(path)).digest("hex");
const lines = [...filesIn(web), ...shared].map((path) => `${digest(path)}  ${relative(crate, path)}`);
lines.sort((a, b) => (a.slice(66) < b.slice(66) ? -1 : 1));
writeFileSync(join(assets, "sources.sha256"), `${lines.join("\n")}\n`);
