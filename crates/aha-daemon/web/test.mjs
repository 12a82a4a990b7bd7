// Bundles the tests, each with what it tests, and runs them.
import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { build } from "esbuild";
import { reportFiles } from "./report.mjs";

const tests = join(import.meta.dirname, "tests");
const outdir = mkdtempSync(join(tmpdir(), "dashboard-"));
try {
  await build({
    entryPoints: readdirSync(tests).map((name) => join(tests, name)),
    outdir,
    outExtension: { ".js": ".mjs" },
    bundle: true,
    format: "esm",
    platform: "node",
    jsx: "automatic",
    jsxImportSource: "preact",
    plugins: [reportFiles],
  });
  const files = readdirSync(outdir).map((name) => join(outdir, name));
  process.exitCode =
    spawnSync(process.execPath, ["--test", "--test-reporter=dot", ...files], { stdio: "inherit" }).status ?? 1;
} finally {
  rmSync(outdir, { recursive: true });
}
