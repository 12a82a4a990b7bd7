// The page of `aha report`: its colours, styles, figures and numbers are the dashboard's as well.
import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";

export const report = resolve(import.meta.dirname, "../../aha/src/commands/report/page");

// `report:numbers.js` is that file with its names exported: the report joins its scripts into one instead.
export const reportFiles = {
  name: "report",
  setup(plugins) {
    plugins.onResolve({ filter: /^report:/ }, ({ path }) => ({ path: join(report, path.slice("report:".length)) }));
    plugins.onLoad({ filter: /report\/page\/\w+\.js$/ }, ({ path }) => {
      const text = readFileSync(path, "utf8");
      const names = [...text.matchAll(/^const (\w+) =/gm)].map(([, name]) => name);
      return { contents: `${text}\nexport { ${names.join(", ")} };\n`, loader: "js" };
    });
  },
};
