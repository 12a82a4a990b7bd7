// Completions: groups by filters, and one group with its completions side by side.
import { useEffect, useState } from "preact/hooks";
import { grouped, measure, plural, value } from "report:numbers.js";
import { type Run, type Table, get } from "../api/client";
import { useAsked } from "../data/ask";
import { type Answer, type Filter, ORDERS, groupSql, groupsSql, neighbourSql, query } from "../data/sql";
import { type Place, go, link, replace } from "../router";
import { Empty, Loading, Problem, Text } from "../ui/parts";

const PAGE = 30;
const NO_FILTER: Filter = {
  table: "",
  from: "",
  to: "",
  contains: "",
  rewardMin: "",
  rewardMax: "",
  finish: "",
  trained: "",
  order: "newest",
};

const NEEDED = ["prompt_id", "sample_idx", "completion", "step"];
const hasCompletions = ({ columns }: Table): boolean =>
  NEEDED.every((needed) => columns.some(({ name }) => name === needed));
const rewardsOf = (table: Table): string[] =>
  table.columns.map(({ name }) => name).filter((name) => name.startsWith("reward_") && name !== "reward_error");

/** The filter that an address holds, so that a link shows the same. */
const filterOf = (place: Place, tables: Table[]): Filter => {
  const filter = { ...NO_FILTER, table: tables[0]?.name ?? "" };
  for (const key of Object.keys(NO_FILTER) as (keyof Filter)[]) filter[key] = place.query.get(key) ?? filter[key];
  return tables.some(({ name }) => name === filter.table) ? filter : { ...filter, table: tables[0]?.name ?? "" };
};

export const RolloutsView = ({ run, place }: { run: Run; place: Place }) => {
  const asked = useAsked(
    (signal) => get("/api/v1/runs/{id}/tables", { id: run.id }, undefined, signal),
    [run.id, run.status, run.progress?.stage],
  );
  const tables = (asked.value?.tables ?? []).filter(hasCompletions).filter(({ rows }) => rows > 0);
  if (asked.problem) return <Problem details={asked.problem} again={asked.again} />;
  if (!asked.value) return <Loading what="tables" />;
  if (!tables.length) return <Empty>No completion yet: stages of kind rl, sample and eval write them.</Empty>;
  // The stage that runs first, and the table of all stages last.
  const isNow = ({ name }: Table) => Number(name === run.progress?.stage);
  const sorted = tables.sort((a, b) => isNow(b) - isNow(a) || a.name.localeCompare(b.name));
  const filter = filterOf(place, sorted);
  const table = sorted.find(({ name }) => name === filter.table);
  const [step, prompt] = [place.query.get("step"), place.query.get("prompt")];
  if (table && step !== null && prompt !== null) {
    return <GroupView run={run} table={table} step={Number(step)} promptId={prompt} filter={filter} />;
  }
  return <Groups run={run} tables={sorted} filter={filter} />;
};

const Groups = ({ run, tables, filter }: { run: Run; tables: Table[]; filter: Filter }) => {
  const [page, setPage] = useState(0);
  const asked = useAsked(
    (signal) => query([run.id], groupsSql(filter, PAGE + 1, page * PAGE), signal),
    [run.id, JSON.stringify(filter), page],
  );
  useEffect(() => setPage(0), [JSON.stringify(filter)]);
  const rows = asked.value?.rows ?? [];
  return (
    <section aria-label="Rollouts">
      <FilterForm run={run} tables={tables} filter={filter} isLoading={asked.isLoading} again={asked.again} />
      {asked.problem ? <Problem details={asked.problem} again={asked.again} /> : null}
      {asked.value && !rows.length ? <Empty>No completion is so.</Empty> : null}
      {!asked.value && asked.isLoading ? <Loading what="completions" /> : null}
      {rows.length ? <GroupsTable run={run} filter={filter} rows={rows.slice(0, PAGE)} /> : null}
      {page > 0 || rows.length > PAGE ? (
        <nav class="pages" aria-label="Pages">
          <button type="button" disabled={page === 0} onClick={() => setPage(page - 1)}>
            ← Before
          </button>
          <span class="soft">page {page + 1}</span>
          <button type="button" disabled={rows.length <= PAGE} onClick={() => setPage(page + 1)}>
            More →
          </button>
        </nav>
      ) : null}
    </section>
  );
};

const FilterForm = (props: { run: Run; tables: Table[]; filter: Filter; isLoading: boolean; again: () => void }) => {
  const [draft, setDraft] = useState(props.filter);
  useEffect(() => setDraft(props.filter), [JSON.stringify(props.filter)]);
  const show = (filter: Filter) => replace(link(["runs", props.run.id, "rollouts"], { ...filter }));
  const set =
    (key: keyof Filter, isAtOnce = false) =>
    (event: { currentTarget: { value: string } }) => {
      const next = { ...draft, [key]: event.currentTarget.value };
      setDraft(next);
      if (isAtOnce) show(next);
    };
  const number = (key: keyof Filter, label: string, hint: string) => (
    <label>
      <span>{label}</span>
      <input type="number" step="any" placeholder={hint} value={draft[key]} onInput={set(key)} />
    </label>
  );
  const choice = (key: keyof Filter, label: string, options: [string, string][]) => (
    <label>
      <span>{label}</span>
      <select value={draft[key]} onChange={set(key, true)}>
        {options.map(([name, text]) => (
          <option key={name} value={name}>
            {text}
          </option>
        ))}
      </select>
    </label>
  );
  return (
    <form
      class="filters card"
      role="search"
      aria-label="Filter completions"
      onSubmit={(event) => {
        event.preventDefault();
        if (JSON.stringify(draft) === JSON.stringify(props.filter)) props.again();
        else show(draft);
      }}
    >
      {choice(
        "table",
        "Table",
        props.tables.map(({ name, rows }) => [name, `${name} (${grouped(rows)})`]),
      )}
      {number("from", "Steps from", "first")}
      {number("to", "to", "last")}
      <label class="grows">
        <span>Prompt or completion contains</span>
        <input type="search" value={draft.contains} onInput={set("contains")} />
      </label>
      {number("rewardMin", "Reward from", "any")}
      {number("rewardMax", "to", "any")}
      {choice("finish", "Ended by", [
        ["", "anything"],
        ["stop", "stop token"],
        ["stop_string", "stop string"],
        ["length", "length limit"],
      ])}
      {choice("trained", "Trained on", [
        ["", "either"],
        ["yes", "yes"],
        ["no", "no"],
      ])}
      {choice(
        "order",
        "Order",
        Object.entries(ORDERS).map(([name, { label }]) => [name, label]),
      )}
      <div class="buttons">
        <button type="submit" class="primary" disabled={props.isLoading}>
          {props.isLoading ? "Looking…" : "Show"}
        </button>
        <button type="button" onClick={() => show({ ...NO_FILTER, table: draft.table })}>
          Clear
        </button>
      </div>
    </form>
  );
};

const num = (x: unknown): string => (x === null || x === undefined ? "–" : measure(value(x)));

const GroupsTable = ({ run, filter, rows }: { run: Run; filter: Filter; rows: Answer["rows"] }) => (
  <div class="card scroll">
    <table class="groups">
      <caption class="hidden">Groups of completions, a prompt at a step each</caption>
      <thead>
        <tr>
          <th scope="col" class="n">
            Step
          </th>
          <th scope="col">Prompt</th>
          <th scope="col" class="n">
            Completions
          </th>
          <th scope="col" class="n">
            Mean reward
          </th>
          <th scope="col" class="n wide">
            Lowest to highest
          </th>
          <th scope="col" class="n wide">
            Mean length
          </th>
        </tr>
      </thead>
      <tbody>
        {rows.map((row) => {
          const [step, prompt] = [Number(row["step"]), String(row["prompt_id"])];
          const [size, matches] = [Number(row["size"]), Number(row["matches"])];
          return (
            <tr key={`${step} ${prompt}`}>
              <td class="n">{grouped(step)}</td>
              <th scope="row">
                <a href={link(["runs", run.id, "rollouts"], { ...filter, step, prompt })}>
                  <Text class="text one-line">{String(row["prompt"] ?? "").trim() || prompt}</Text>
                </a>
              </th>
              <td class="n">{matches === size ? size : `${matches} of ${size}`}</td>
              <td class="n">{num(row["reward_mean"])}</td>
              <td class="n wide">
                {num(row["reward_min"])} to {num(row["reward_max"])}
              </td>
              <td class="n wide">{num(row["len_mean"])}</td>
            </tr>
          );
        })}
      </tbody>
    </table>
  </div>
);

const GroupView = (props: { run: Run; table: Table; step: number; promptId: string; filter: Filter }) => {
  const { run, table, step, promptId, filter } = props;
  const rewards = rewardsOf(table);
  const asked = useAsked(
    (signal) => query([run.id], groupSql(table.name, rewards, step, promptId), signal),
    [run.id, table.name, step, promptId],
  );
  const rows = asked.value?.rows ?? [];
  const [first] = rows;
  const back = link(["runs", run.id, "rollouts"], { ...filter });
  const isLong = rows.some((row) => String(row["completion"]).length > 600);
  return (
    <section aria-label={`Completions of a prompt at step ${step}`}>
      <div class="controls">
        <a class="button" href={back}>
          ← All groups
        </a>
        <span class="soft">
          <Text>{`${table.name}, step ${grouped(step)}, prompt ${promptId}`}</Text>
          {rows.length ? `: ${plural(rows.length, "completion")}` : ""}
        </span>
        <span class="gap" />
        <StepButton label="Step before" run={run} filter={filter} table={table.name} promptId={promptId} to={step} />
        <StepButton
          isNext
          label="Step after"
          run={run}
          filter={filter}
          table={table.name}
          promptId={promptId}
          to={step}
        />
      </div>
      {asked.problem ? <Problem details={asked.problem} again={asked.again} /> : null}
      {!asked.value && asked.isLoading ? <Loading what="completions" /> : null}
      {asked.value && !first ? <Empty>There is no such group.</Empty> : null}
      {first ? (
        <>
          <div class="asked card">
            <div>
              <div class="label">Prompt{first["source"] ? ` from ${String(first["source"])}` : ""}</div>
              <p class="text">
                <Text class="">{String(first["prompt"])}</Text>
              </p>
            </div>
            {first["answer"] === null ? null : (
              <div>
                <div class="label">Reference answer</div>
                <p class="text">
                  <Text class="">{String(first["answer"])}</Text>
                </p>
              </div>
            )}
          </div>
          <ol class={`completions${isLong ? " long" : ""}`}>
            {rows.map((row) => (
              <Completion key={String(row["sample_idx"])} row={row} rewards={rewards} />
            ))}
          </ol>
        </>
      ) : null}
    </section>
  );
};

/** Goes to the same prompt at the step before or after at which it was asked. */
const StepButton = (props: {
  label: string;
  isNext?: boolean;
  run: Run;
  filter: Filter;
  table: string;
  promptId: string;
  to: number;
}) => {
  const { run, filter, table, promptId } = props;
  const [isNone, setNone] = useState(false);
  useEffect(() => setNone(false), [props.to]);
  const find = async () => {
    const sql = neighbourSql(table, promptId, props.to, props.isNext ?? false);
    const found = (await query([run.id], sql)).rows[0]?.["step"];
    if (found === null || found === undefined) return setNone(true);
    go(link(["runs", run.id, "rollouts"], { ...filter, table, step: Number(found), prompt: promptId }));
  };
  return (
    <button type="button" disabled={isNone} onClick={() => void find()}>
      {isNone ? `No ${props.label.toLowerCase()}` : props.label}
    </button>
  );
};

const Completion = ({ row, rewards }: { row: Answer["rows"][number]; rewards: string[] }) => {
  const advantage = row["advantage"] === null ? null : value(row["advantage"]);
  const tone = advantage === null || advantage === 0 ? "" : advantage > 0 ? "plus" : "minus";
  const sign = advantage !== null && advantage > 0 ? "+" : "";
  return (
    <li class="completion card">
      <div class="head">
        <span class="idx">#{String(row["sample_idx"])}</span>
        <span class="reward">
          {num(row["reward"])}
          <span class="hidden"> reward</span>
        </span>
        <span class={`adv ${tone}`}>
          {advantage === null ? "no advantage" : `${sign}${measure(advantage)} advantage`}
        </span>
      </div>
      <div class="facts">
        {rewards.map((reward) => (
          <span key={reward} class={`chip ${partTone(row[reward])}`}>
            {reward.slice("reward_".length)} {num(row[reward])}
          </span>
        ))}
        <span class="chip">{plural(Number(row["completion_len_tokens"]), "token")}</span>
        <span class="chip">{String(row["finish_reason"])}</span>
        <span class="chip">policy {String(row["policy_version"])}</span>
        {row["is_trained"] ? null : <span class="chip skip">{String(row["skip_reason"] ?? "not trained on")}</span>}
      </div>
      {row["reward_error"] ? (
        <p class="bad small">
          <Text>{String(row["reward_error"])}</Text>
        </p>
      ) : null}
      <p class="text" tabIndex={0}>
        <Text class="">{String(row["completion"])}</Text>
      </p>
    </li>
  );
};

const partTone = (x: unknown): string => (value(x) === 1 ? "right" : value(x) === 0 ? "wrong" : "");
