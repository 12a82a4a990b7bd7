// SQL: what is asked of the tables of runs, and answers with the types of their columns.
import { ApiError, post } from "../api/client";

export interface Column {
  name: string;
  type: string;
}

export interface Answer {
  columns: Column[];
  rows: Record<string, unknown>[];
}

/** A name, quoted. */
export const name = (text: string): string => `"${text.replaceAll('"', '""')}"`;
/** A text, quoted. */
export const text = (text: string): string => `'${text.replaceAll("'", "''")}'`;

const TRIES_MAX = 8;
const PAUSE_MS = 400;

/** Answers a query; one that finds all places taken waits for one. */
export const query = async (runs: number[], sql: string, signal?: AbortSignal): Promise<Answer> => {
  for (let left = TRIES_MAX; ; left--) {
    try {
      const body = { sql, format: "typed_json" as const };
      const [only] = runs;
      const answer: unknown =
        runs.length === 1 && only !== undefined
          ? await post("/api/v1/runs/{id}/query", { id: only }, body, signal)
          : await post("/api/v1/query", {}, { ...body, runs }, signal);
      return answer as Answer;
    } catch (error) {
      const isBusy = error instanceof ApiError && error.details.status === 503;
      if (!isBusy || left === 0 || signal?.aborted) throw error;
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    }
  }
};

/** Which completions are wanted. */
export interface Filter {
  table: string;
  from: string;
  to: string;
  contains: string;
  rewardMin: string;
  rewardMax: string;
  finish: string;
  trained: string;
  order: string;
}

export const ORDERS: Record<string, { label: string; sql: string }> = {
  newest: { label: "newest step first", sql: "step DESC, prompt_id" },
  oldest: { label: "oldest step first", sql: "step, prompt_id" },
  best: { label: "highest mean reward", sql: "reward_mean DESC NULLS LAST, step DESC, prompt_id" },
  worst: { label: "lowest mean reward", sql: "reward_mean ASC NULLS LAST, step DESC, prompt_id" },
  spread: { label: "widest spread of rewards", sql: "reward_max - reward_min DESC NULLS LAST, step DESC, prompt_id" },
  longest: { label: "longest completions", sql: "len_mean DESC, step DESC, prompt_id" },
};

const isNumber = (text: string): boolean => text.trim() !== "" && Number.isFinite(Number(text));

/** Conditions on steps, and on completions. */
export const conditions = (filter: Filter): { ofSteps: string[]; ofRows: string[] } => {
  const ofSteps = [
    isNumber(filter.from) && `step >= ${Number(filter.from)}`,
    isNumber(filter.to) && `step <= ${Number(filter.to)}`,
  ];
  const contains = text(filter.contains);
  const ofRows = [
    filter.contains && `(strpos(completion, ${contains}) > 0 OR strpos(prompt, ${contains}) > 0)`,
    isNumber(filter.rewardMin) && `reward >= ${Number(filter.rewardMin)}`,
    isNumber(filter.rewardMax) && `reward <= ${Number(filter.rewardMax)}`,
    filter.finish && `finish_reason = ${text(filter.finish)}`,
    filter.trained === "yes" && "is_trained",
    filter.trained === "no" && "NOT is_trained",
  ];
  const known = (some: (string | false)[]) => some.filter((one): one is string => Boolean(one));
  return { ofSteps: known(ofSteps), ofRows: known(ofRows) };
};

/** Groups of completions, a row each. */
export const groupsSql = (filter: Filter, limit: number, offset: number): string => {
  const { ofSteps, ofRows } = conditions(filter);
  const where = ofSteps.length ? `WHERE ${ofSteps.join(" AND ")} ` : "";
  const matches = ofRows.length ? `count(*) FILTER (WHERE ${ofRows.join(" AND ")})` : "count(*)";
  const order = ORDERS[filter.order]?.sql ?? ORDERS["newest"]?.sql;
  return (
    `SELECT step, prompt_id, left(min(prompt), 400) AS prompt, min(source) AS source, count(*) AS size, ` +
    `${matches} AS matches, avg(reward) AS reward_mean, min(reward) AS reward_min, max(reward) AS reward_max, ` +
    `avg(completion_len_tokens) AS len_mean FROM ${name(filter.table)} ${where}` +
    `GROUP BY step, prompt_id HAVING ${matches} > 0 ORDER BY ${order} LIMIT ${limit} OFFSET ${offset}`
  );
};

/** The completions of a group. */
export const groupSql = (table: string, rewards: string[], step: number, promptId: string): string => {
  const parts = rewards.map((reward) => `, ${name(reward)}`).join("");
  return (
    `SELECT prompt, answer, source, sample_idx, policy_version, completion, completion_len_tokens, finish_reason, ` +
    `reward${parts}, reward_error, advantage, is_trained, skip_reason FROM ${name(table)} ` +
    `WHERE step = ${step} AND prompt_id = ${text(promptId)} ORDER BY sample_idx`
  );
};

/** The step before or after one at which a prompt was asked. */
export const neighbourSql = (table: string, promptId: string, step: number, isNext: boolean): string => {
  const [which, is] = isNext ? ["min", ">"] : ["max", "<"];
  return (
    `SELECT ${which}(step) AS step FROM ${name(table)} ` + `WHERE prompt_id = ${text(promptId)} AND step ${is} ${step}`
  );
};
