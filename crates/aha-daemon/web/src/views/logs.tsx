// What a run says: its log as it is written, or what its processes wrote to stderr.
import { useEffect, useRef, useState } from "preact/hooks";
import { type Details, type Run, address, ask } from "../api/client";
import { textOf } from "../api/events";
import { detailsOf } from "../data/ask";
import { Empty, Problem, Text } from "../ui/parts";

/** Lines that are kept; the oldest go first. */
const LINES_MAX = 5000;
const TAIL = 500;
const LEVELS = ["TRACE", "DEBUG", "INFO", "WARN", "ERROR"];

interface Line {
  id: number;
  raw: string;
  at: string;
  level: string;
  message: string;
  rest: string;
}

/** A line of the log is a JSON object; any other is shown as it is. */
export const parseLine = (raw: string, id: number): Line => {
  const plain = { id, raw, at: "", level: "", message: raw, rest: "" };
  if (!raw.startsWith("{")) return plain;
  try {
    const { timestamp = "", level = "", message = "", ...fields } = JSON.parse(raw) as Record<string, unknown>;
    const said = Object.entries(fields).filter(([key]) => key !== "target");
    const rest = said.map(([key, x]) => `${key}=${typeof x === "string" ? x : JSON.stringify(x)}`).join(" ");
    return { id, raw, at: String(timestamp), level: String(level), message: String(message), rest };
  } catch {
    return plain;
  }
};

const useLines = (
  id: number,
  source: "log" | "output",
): { lines: Line[]; problem: Details | null; isOpen: boolean } => {
  const [lines, setLines] = useState<Line[]>([]);
  const [problem, setProblem] = useState<Details | null>(null);
  const [isOpen, setOpen] = useState(true);
  useEffect(() => {
    const stop = new AbortController();
    setLines([]);
    setProblem(null);
    setOpen(true);
    let count = 0;
    const read = async () => {
      const url = address("/api/v1/runs/{id}/logs", { id }, { source, tail: TAIL, follow: true });
      const response = await ask(url, { signal: stop.signal });
      let rest = "";
      for await (const chunk of textOf(response)) {
        const parts = (rest + chunk).split("\n");
        rest = parts.pop() ?? "";
        const fresh = parts.map((raw) => parseLine(raw, count++));
        if (fresh.length) setLines((lines) => [...lines, ...fresh].slice(-LINES_MAX));
      }
      setOpen(false);
    };
    read().catch((error: unknown) => {
      if (stop.signal.aborted) return;
      setProblem(detailsOf(error));
      setOpen(false);
    });
    return () => stop.abort();
  }, [id, source]);
  return { lines, problem, isOpen };
};

export const LogsView = ({ run }: { run: Run }) => {
  const [source, setSource] = useState<"log" | "output">("log");
  const [least, setLeast] = useState("INFO");
  const [wanted, setWanted] = useState("");
  const [isFollowing, setFollowing] = useState(true);
  const { lines, problem, isOpen } = useLines(run.id, source);
  const box = useRef<HTMLDivElement>(null);
  const isShown = ({ level, raw }: Line) =>
    (!level || LEVELS.indexOf(level) >= LEVELS.indexOf(least)) && raw.toLowerCase().includes(wanted.toLowerCase());
  const shown = lines.filter(isShown);
  useEffect(() => {
    if (isFollowing) box.current?.scrollTo({ top: box.current.scrollHeight });
  }, [shown.length, isFollowing]);
  return (
    <section aria-label="Logs">
      <div class="controls">
        <label class="picker">
          Show{" "}
          <select value={source} onChange={(event) => setSource(event.currentTarget.value as "log" | "output")}>
            <option value="log">the log</option>
            <option value="output">stderr</option>
          </select>
        </label>
        <label class="picker">
          from level{" "}
          <select value={least} onChange={(event) => setLeast(event.currentTarget.value)}>
            {LEVELS.map((level) => (
              <option key={level}>{level}</option>
            ))}
          </select>
        </label>
        <label class="picker">
          with <input type="search" value={wanted} onInput={(event) => setWanted(event.currentTarget.value)} />
        </label>
        <span class="gap" />
        <span class="soft small">{isOpen ? "new lines come by themselves" : "no more lines to come"}</span>
        <label>
          <input
            type="checkbox"
            checked={isFollowing}
            onChange={(event) => setFollowing(event.currentTarget.checked)}
          />{" "}
          Follow
        </label>
      </div>
      {problem ? <Problem details={problem} /> : null}
      {shown.length ? (
        <div ref={box} class="card lines" tabIndex={0} role="log" aria-live="off" aria-label="Lines">
          {shown.map((line) => (
            <div key={line.id} class={`line ${line.level.toLowerCase()}`}>
              <span class="soft">{line.at.slice(11, 19)}</span>
              <span class="level">{line.level}</span>
              <span class="words">
                <Text>{line.message}</Text> <Text class="text soft">{line.rest}</Text>
              </span>
            </div>
          ))}
        </div>
      ) : (
        <Empty>{lines.length ? "No line is so." : "No line yet."}</Empty>
      )}
    </section>
  );
};
