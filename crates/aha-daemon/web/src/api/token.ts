// The token that the daemon asks for, kept as long as the browser's tab lives.
import { Store } from "../store";

const KEY = "aha.token";

/** Whether the daemon has refused to answer without a token, or with the one that there is. */
export const isTokenWanted = new Store(false);

export const token = (): string | null => sessionStorage.getItem(KEY);

export const setToken = (text: string): void => {
  sessionStorage.setItem(KEY, text);
  isTokenWanted.set(false);
};
