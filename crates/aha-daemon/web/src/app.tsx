// The frame of every view, and which view an address leads to.
import { useEffect, useRef } from "preact/hooks";
import { connection } from "./api/events";
import { isTokenWanted } from "./api/token";
import { useStore } from "./store";
import { type Place, link, usePlace } from "./router";
import { type Theme, setTheme, theme } from "./theme";
import { Announcer } from "./ui/announce";
import { Confirmer } from "./ui/confirm";
import { Empty } from "./ui/parts";
import { TokenForm } from "./ui/token";
import { CompareView } from "./views/compare";
import { RunView } from "./views/run";
import { RunsView } from "./views/runs";
import { SubmitView } from "./views/submit";

export const App = () => {
  const place = usePlace();
  const isLocked = useStore(isTokenWanted);
  useTitleAndFocus(place);
  return (
    <>
      <a class="skip" href="#main" onClick={skip}>
        Skip to content
      </a>
      <Bar place={place} />
      {isLocked ? <TokenForm /> : <View place={place} />}
      <footer>
        What is here is in the API as well, which <code>/api/v1/openapi.json</code> describes ·{" "}
        <a href="/assets/licences.txt">Licences of what this page is made with</a>
      </footer>
      <Announcer />
      <Confirmer />
    </>
  );
};

const skip = (event: MouseEvent) => {
  event.preventDefault();
  document.getElementById("main")?.focus();
};

const View = ({ place }: { place: Place }) => {
  const [first, id, tab = "overview"] = place.path;
  if (first === undefined) return <RunsView />;
  if (first === "runs" && id !== undefined) return <RunView key={id} id={Number(id)} tab={tab} place={place} />;
  if (first === "submit") return <SubmitView key={place.query.get("from") ?? ""} place={place} />;
  if (first === "compare") return <CompareView place={place} />;
  return (
    <main id="main" tabIndex={-1}>
      <Empty>
        There is nothing here. <a href={link([])}>All runs</a>
      </Empty>
    </main>
  );
};

const NAMES: Record<string, string> = { submit: "Submit", compare: "Compare" };

/** Another view has another title, and the focus is at its beginning, as it is on a page that was loaded. */
const useTitleAndFocus = ({ path }: Place): void => {
  const [first = "", id = "", tab = ""] = path;
  const name = first === "runs" ? `Run ${id}${tab ? `, ${tab}` : ""}` : (NAMES[first] ?? "Runs");
  const isFirst = useRef(true);
  useEffect(() => {
    document.title = `${name} · aha`;
    if (!isFirst.current && !tab) document.getElementById("main")?.focus({ preventScroll: true });
    isFirst.current = false;
  }, [name]);
};

const Bar = ({ place }: { place: Place }) => {
  const [first = "runs"] = place.path;
  const entry = (name: string, label: string, to: string) => (
    <a href={to} aria-current={first === name ? "page" : undefined}>
      {label}
    </a>
  );
  return (
    <header class="bar">
      <div>
        <a class="brand" href={link([])}>
          aha
        </a>
        <nav aria-label="Dashboard">
          {entry("runs", "Runs", link([]))}
          {entry("compare", "Compare", link(["compare"]))}
          {entry("submit", "Submit", link(["submit"]))}
        </nav>
        <span class="gap" />
        <Live />
        <ThemeSwitch />
      </div>
    </header>
  );
};

const WORDS = { connecting: "", live: "live", lost: "connection lost, trying again" };

const Live = () => {
  const state = useStore(connection);
  return (
    <span class={`connection ${state}`} role="status">
      {WORDS[state]}
    </span>
  );
};

const THEMES: [Theme, string][] = [
  ["system", "As the system"],
  ["light", "Light"],
  ["dark", "Dark"],
];

const ThemeSwitch = () => (
  <select
    class="theme"
    aria-label="Colours"
    value={useStore(theme)}
    onChange={(event) => setTheme(event.currentTarget.value as Theme)}
  >
    {THEMES.map(([name, label]) => (
      <option key={name} value={name}>
        {label}
      </option>
    ))}
  </select>
);
