// Light and dark: as the system has it, unless somebody has chosen.
import { Store } from "./store";

export type Theme = "system" | "light" | "dark";

const KEY = "aha.theme";
const isTheme = (text: string | null): text is Theme => text === "system" || text === "light" || text === "dark";
const kept = localStorage.getItem(KEY);

export const theme = new Store<Theme>(isTheme(kept) ? kept : "system");

const isDark = matchMedia("(prefers-color-scheme: dark)");

/** Which of the two is shown; charts are drawn anew when it changes. */
export const shown = new Store<"light" | "dark">("light");

const apply = (): void => {
  document.documentElement.style.colorScheme = theme.value === "system" ? "light dark" : theme.value;
  const dark = theme.value === "system" ? isDark.matches : theme.value === "dark";
  colours.clear();
  shown.set(dark ? "dark" : "light");
};

export const setTheme = (to: Theme): void => {
  localStorage.setItem(KEY, to);
  theme.set(to);
  apply();
};

const colours = new Map<string, string>();

/** A colour of the style sheet as a canvas takes it. */
export const colour = (name: string): string => {
  const known = colours.get(name);
  if (known !== undefined) return known;
  const probe = document.createElement("span");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  colours.set(name, found);
  return found;
};

isDark.addEventListener("change", apply);
apply();
