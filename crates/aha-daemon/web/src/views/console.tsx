// SQL over the tables of runs.
import { useEffect, useRef, useState } from "preact/hooks";
import { grouped, plural, value } from "report:numbers.js";
import { type Details, get } from "../api/client";
import { detailsOf, useAsked } from "../data/ask";
import { type Answer, query } from "../data/sql";
import { announce } from "../ui/announce";
import { Empty, Loading, Problem, Text } from "../ui/parts";

const HISTORY = "aha.sql";
const HISTORY_MAX = 50;
/** Rows that are shown, at most: what was answered beyond is in the file. */
const ROWS_MAX = 1000;

const EXAMPLES: [string, string][] = [
  [
    "What each stage measured last",
    "SELECT stage, name, last_value(value ORDER BY step) AS value\n" +
      "FROM metrics GROUP BY stage, name ORDER BY stage, name",
  ],
  [
    "Reward by step",
    "SELECT stage, step, avg(reward) AS reward, avg(completion_len_tokens) AS tokens\n" +
      "FROM rollouts GROUP BY stage, step ORDER BY stage, step",
  ],
  [
    "The best completions",
    "SELECT step, prompt, completion, reward\nFROM rollouts ORDER BY reward DESC NULLS LAST, step DESC LIMIT 20",
  ],
  [
    "What was left out, and why",
    "SELECT skip_reason, count(*) AS completions\n" +
      "FROM rollouts WHERE NOT is_trained GROUP BY skip_reason ORDER BY completions DESC",
  ],
];

const readHistory = (): string[] => {
  try {
    const kept: unknown = JSON.parse(localStorage.getItem(HISTORY) ?? "[]");
    return Array.isArray(kept) ? kept.filter((one): one is string => typeof one === "string") : [];
  } catch {
    return [];
  }
};

interface Outcome {
  answer: Answer | null;
  problem: Details | null;
  tookMs: number;
}

export const ConsoleView = ({ runs }: { runs: number[] }) => {
  const [sql, setSql] = useState(() => readHistory()[0] ?? EXAMPLES[1]?.[1] ?? "");
  const [history, setHistory] = useState(readHistory);
  const [outcome, setOutcome] = useState<Outcome | null>(null);
  const [stop, setStop] = useState<AbortController | null>(null);
  const input = useRef<HTMLTextAreaElement>(null);

  const run = async () => {
    if (stop || !sql.trim()) return;
    const kept = [sql, ...history.filter((one) => one !== sql)].slice(0, HISTORY_MAX);
    setHistory(kept);
    localStorage.setItem(HISTORY, JSON.stringify(kept));
    const stopping = new AbortController();
    setStop(stopping);
    const began = performance.now();
    try {
      const answer = await query(runs, sql, stopping.signal);
      setOutcome({ answer, problem: null, tookMs: performance.now() - began });
      announce(`The answer has ${plural(answer.rows.length, "row")}.`);
    } catch (error) {
      if (!stopping.signal.aborted) {
        setOutcome({ answer: null, problem: detailsOf(error), tookMs: performance.now() - began });
      }
    } finally {
      setStop(null);
    }
  };
  const insert = (text: string) => {
    const area = input.current;
    if (!area) return;
    area.setRangeText(text, area.selectionStart, area.selectionEnd, "end");
    setSql(area.value);
    area.focus();
  };
  return (
    <section class="console" aria-label="SQL console">
      <TableList runs={runs} insert={insert} />
      <div class="asking">
        <form
          onSubmit={(event) => {
            event.preventDefault();
            void run();
          }}
        >
          <label for="sql" class="hidden">
            Query
          </label>
          <textarea
            id="sql"
            ref={input}
            class="code"
            rows={7}
            spellcheck={false}
            value={sql}
            onInput={(event) => setSql(event.currentTarget.value)}
            onKeyDown={(event) => {
              if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
                event.preventDefault();
                void run();
              }
            }}
          />
          <div class="controls">
            <button type="submit" class="primary" disabled={stop !== null}>
              {stop ? "Asking…" : "Run"}
            </button>
            {stop ? (
              <button type="button" onClick={() => stop.abort()}>
                Stop
              </button>
            ) : null}
            <span class="soft small">Ctrl+Enter runs it</span>
            <span class="gap" />
            <Picker label="Examples" options={EXAMPLES} pick={setSql} />
            <Picker label="History" options={history.map((one) => [one.replace(/\s+/g, " "), one])} pick={setSql} />
          </div>
        </form>
        {outcome?.problem ? <Problem details={outcome.problem} /> : null}
        {outcome?.answer ? <AnswerTable answer={outcome.answer} tookMs={outcome.tookMs} /> : null}
        {outcome ? null : <Empty>Queries only read: they see the tables on the left, and nothing else.</Empty>}
      </div>
    </section>
  );
};

const Picker = (props: { label: string; options: [string, string][]; pick: (text: string) => void }) => (
  <select
    aria-label={props.label}
    disabled={!props.options.length}
    value=""
    onChange={(event) => {
      props.pick(event.currentTarget.value);
      event.currentTarget.value = "";
    }}
  >
    <option value="">{props.label}…</option>
    {props.options.map(([label, text]) => (
      <option key={text} value={text}>
        {label.length > 90 ? `${label.slice(0, 89)}…` : label}
      </option>
    ))}
  </select>
);

/** The tables of the first run; where there are several runs, each has a column `run` besides. */
const TableList = ({ runs, insert }: { runs: number[]; insert: (text: string) => void }) => {
  const [id = 0] = runs;
  const asked = useAsked((signal) => get("/api/v1/runs/{id}/tables", { id }, undefined, signal), [id]);
  const tables = asked.value?.tables ?? [];
  return (
    <aside class="card tables" aria-label="Tables">
      <h2>Tables</h2>
      {asked.problem ? <Problem details={asked.problem} again={asked.again} /> : null}
      {!asked.value && asked.isLoading ? <Loading what="tables" /> : null}
      {asked.value && !tables.length ? <p class="soft small">none yet</p> : null}
      {tables.map(({ name, rows, columns }) => (
        <details key={name}>
          <summary>
            <b>{name}</b> <span class="soft">{grouped(rows)}</span>
          </summary>
          <button type="button" class="quiet" onClick={() => insert(name)}>
            Insert <code>{name}</code>
          </button>
          <dl>
            {columns.map((column) => (
              <div key={column.name}>
                <dt title={column.doc ?? ""}>{column.name}</dt>
                <dd>{column.type}</dd>
              </div>
            ))}
          </dl>
        </details>
      ))}
    </aside>
  );
};

const NUMERIC = /^(U?Int|Float|Decimal)/;

const shown = (x: unknown): string => {
  if (x === null || x === undefined) return "";
  return typeof x === "object" ? JSON.stringify(x) : String(x);
};

/** A number as it is, to the digits that tell it from others. */
const figure = (x: unknown, type: string): string => {
  const number = value(x);
  return type.startsWith("Float") && Number.isFinite(number) ? String(Number(number.toPrecision(7))) : shown(x);
};

const AnswerTable = ({ answer, tookMs }: { answer: Answer; tookMs: number }) => {
  const rows = answer.rows.slice(0, ROWS_MAX);
  const cut = answer.rows.length > rows.length ? `, the first ${grouped(rows.length)} of them here` : "";
  return (
    <>
      <div class="controls">
        <span class="soft">
          {plural(answer.rows.length, "row")}
          {cut} · {(tookMs / 1000).toFixed(2)} s
        </span>
        <span class="gap" />
        <button type="button" onClick={() => save("answer.csv", csvOf(answer), "text/csv")}>
          Save as CSV
        </button>
        <button
          type="button"
          onClick={() => save("answer.json", JSON.stringify(answer.rows, null, 1), "application/json")}
        >
          Save as JSON
        </button>
      </div>
      <div class="card scroll answer" tabIndex={0} role="group" aria-label="Answer">
        <table>
          <thead>
            <tr>
              {answer.columns.map(({ name, type }) => (
                <th key={name} scope="col" class={NUMERIC.test(type) ? "n" : ""}>
                  <Text>{name}</Text>
                  <span class="type">{type}</span>
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {rows.map((row, at) => (
              <tr key={at}>
                {answer.columns.map(({ name, type }) =>
                  NUMERIC.test(type) ? (
                    <td key={name} class="n">
                      {row[name] === null ? <span class="soft">null</span> : figure(row[name], type)}
                    </td>
                  ) : (
                    <td key={name}>
                      {row[name] === null ? <span class="soft">null</span> : <Cell text={shown(row[name])} />}
                    </td>
                  ),
                )}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </>
  );
};

const CELL_MAX = 300;

/** A long text is cut until it is wanted. */
const Cell = ({ text }: { text: string }) => {
  const [isWhole, setWhole] = useState(false);
  useEffect(() => setWhole(false), [text]);
  if (text.length <= CELL_MAX || isWhole) return <Text>{text}</Text>;
  return (
    <>
      <Text>{text.slice(0, CELL_MAX)}</Text>…{" "}
      <button type="button" class="quiet" onClick={() => setWhole(true)}>
        all of it
      </button>
    </>
  );
};

const csvOf = ({ columns, rows }: Answer): string => {
  const cell = (text: string) => (/[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const lines = rows.map((row) => columns.map(({ name }) => cell(shown(row[name]))).join(","));
  return `${[columns.map(({ name }) => cell(name)).join(","), ...lines].join("\n")}\n`;
};

const save = (name: string, text: string, type: string): void => {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const anchor = document.createElement("a");
  [anchor.href, anchor.download] = [url, name];
  anchor.click();
  URL.revokeObjectURL(url);
};
