// The API, with the types of its OpenAPI document: a path or a field that isn't there doesn't compile.
import type { components, paths } from "./schema";
import { isTokenWanted, token } from "./token";

export type Run = components["schemas"]["Record"];
export type Status = components["schemas"]["Status"];
export type StageProgress = components["schemas"]["StageProgress"];
export type ActorQueue = components["schemas"]["ActorQueue"];
export type Curve = components["schemas"]["Curve"];
export type Sample = components["schemas"]["Sample"];
export type Table = components["schemas"]["Table"];
export type Submission = components["schemas"]["Submission"];
export type Checked = components["schemas"]["Checked"];
export type UsageOfDaemon = components["schemas"]["UsageOfDaemon"];
export type Details = components["schemas"]["Details"];

type Method = "get" | "post" | "delete";
type PathsOf<M extends Method> = {
  [P in keyof paths]: paths[P] extends Record<M, { responses: unknown }> ? P : never;
}[keyof paths];
type Json<C> = C extends { content: { "application/json": infer T } } ? T : never;
type AnswerOf<P extends keyof paths, M extends Method> =
  paths[P] extends Record<M, { responses: infer R }>
    ? Json<R extends { 200: infer C } ? C : R extends { 201: infer C } ? C : never>
    : never;
type BodyOf<P extends keyof paths> = paths[P] extends {
  post: { requestBody: { content: { "application/json": infer T } } };
}
  ? T
  : undefined;
type QueryOf<P extends keyof paths> = paths[P] extends { get: { parameters: { query?: infer Q } } } ? Q : never;

/** What the places in a path hold, such as `id`. */
type Places = Record<string, string | number>;

/** An answer of the daemon that isn't the one that was wanted. */
export class ApiError extends Error {
  constructor(readonly details: Details) {
    super(details.detail);
  }

  get hint(): string | undefined {
    return this.details.hint ?? undefined;
  }
}

/** The address of a path with its places filled in. */
export const address = (path: string, places: Places = {}, query: object = {}): string => {
  const filled = path.replace(/\{(\w+)\}/g, (_, name: string) => encodeURIComponent(String(places[name])));
  const known = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const search = new URLSearchParams(known.map(([name, value]) => [name, String(value)])).toString();
  return search ? `${filled}?${search}` : filled;
};

/** Asks the daemon; fails with an `ApiError` unless it answers with success. */
export const ask = async (url: string, init: RequestInit = {}): Promise<Response> => {
  const headers = new Headers(init.headers);
  const known = token();
  if (known) headers.set("Authorization", `Bearer ${known}`);
  const response = await fetch(url, { ...init, headers }).catch((error: unknown) => {
    if (init.signal?.aborted) throw error;
    throw new ApiError(unreachable(String(error)));
  });
  if (response.ok) return response;
  if (response.status === 401) isTokenWanted.set(true);
  throw new ApiError(await detailsOf(response));
};

const unreachable = (detail: string): Details => ({
  type: "/problems/unreachable",
  title: "The daemon doesn't answer",
  status: 0,
  detail: `the daemon doesn't answer: ${detail}`,
  hint: "see whether it runs: `aha daemon`",
});

const detailsOf = async (response: Response): Promise<Details> => {
  const text = await response.text();
  try {
    return JSON.parse(text) as Details;
  } catch {
    const title = response.statusText || "The answer can't be read";
    return { type: "/problems/unknown", title, status: response.status, detail: text || title };
  }
};

export const get = async <P extends PathsOf<"get">>(
  path: P,
  places?: Places,
  query?: QueryOf<P>,
  signal?: AbortSignal,
): Promise<AnswerOf<P, "get">> => {
  const response = await ask(address(path, places, query ?? {}), { signal: signal ?? null });
  return (await response.json()) as AnswerOf<P, "get">;
};

export const getText = async <P extends PathsOf<"get">>(path: P, places?: Places): Promise<string> =>
  (await ask(address(path, places))).text();

export const post = async <P extends PathsOf<"post">>(
  path: P,
  places?: Places,
  body?: BodyOf<P>,
  signal?: AbortSignal,
): Promise<AnswerOf<P, "post">> => {
  const init: RequestInit = { method: "POST", signal: signal ?? null };
  if (body !== undefined) {
    init.headers = { "Content-Type": "application/json" };
    init.body = JSON.stringify(body);
  }
  const response = await ask(address(path, places), init);
  return (await response.json()) as AnswerOf<P, "post">;
};

export const remove = async (path: PathsOf<"delete">, places: Places): Promise<void> => {
  await ask(address(path, places), { method: "DELETE" });
};
