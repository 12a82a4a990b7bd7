// What a component asks the daemon for.
import { useCallback, useEffect, useState } from "preact/hooks";
import { ApiError, type Details } from "../api/client";

/** A problem of any kind, as one of the daemon's. */
export const detailsOf = (error: unknown): Details =>
  error instanceof ApiError
    ? error.details
    : { type: "/problems/page", title: "Something went wrong", status: 0, detail: String(error) };

export interface Asked<T> {
  value: T | null;
  problem: Details | null;
  isLoading: boolean;
  again: () => void;
}

/** What `ask` answers, asked when the component appears and when `keys` change; the old answer stays meanwhile. */
export const useAsked = <T>(ask: (signal: AbortSignal) => Promise<T>, keys: unknown[]): Asked<T> => {
  const [state, setState] = useState<Omit<Asked<T>, "again">>({ value: null, problem: null, isLoading: true });
  const [count, setCount] = useState(0);
  useEffect(() => {
    const stop = new AbortController();
    setState((state) => ({ ...state, isLoading: true }));
    ask(stop.signal)
      .then((value) => !stop.signal.aborted && setState({ value, problem: null, isLoading: false }))
      .catch((error: unknown) => {
        if (!stop.signal.aborted) setState((state) => ({ ...state, problem: detailsOf(error), isLoading: false }));
      });
    return () => stop.abort();
  }, [count, ...keys]);
  return { ...state, again: useCallback(() => setCount((count) => count + 1), []) };
};
