// Where in the dashboard somebody is: the part of the address behind `#`.
import { useEffect, useState } from "preact/hooks";

export interface Place {
  /** Such as `["runs", "3", "logs"]`. */
  path: string[];
  query: URLSearchParams;
}

export const parse = (hash: string): Place => {
  const [path = "", query = ""] = hash.replace(/^#\/?/, "").split("?");
  return { path: path.split("/").filter(Boolean).map(decodeURIComponent), query: new URLSearchParams(query) };
};

export type Query = Record<string, string | number | null | undefined>;

/** A link within the dashboard. */
export const link = (path: (string | number)[], query: Query = {}): string => {
  const known = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const search = new URLSearchParams(known.map(([name, value]) => [name, String(value)])).toString();
  return `#/${path.map((part) => encodeURIComponent(part)).join("/")}${search ? `?${search}` : ""}`;
};

export const go = (to: string): void => {
  location.hash = to;
};

/** Changes the address without a step back to what was before. */
export const replace = (to: string): void => {
  history.replaceState(null, "", to);
  dispatchEvent(new HashChangeEvent("hashchange"));
};

export const usePlace = (): Place => {
  const [hash, setHash] = useState(location.hash);
  useEffect(() => {
    const follow = () => setHash(location.hash);
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  return parse(hash);
};
