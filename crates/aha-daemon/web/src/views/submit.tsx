// A pipeline into the queue.
import { useEffect, useRef, useState } from "preact/hooks";
import { plural } from "report:numbers.js";
import { type Checked, type Details, type Submission, get, getText, post } from "../api/client";
import { detailsOf } from "../data/ask";
import { type Place, go, link } from "../router";
import { announce } from "../ui/announce";
import { Problem, Text, bytes, kindName } from "../ui/parts";

interface Draft {
  name: string;
  pipeline: string;
  sets: string;
  base: string;
}

/** A problem of a pipeline, as `aha check --json` has it. */
interface PipelineProblem {
  line: number;
  key: string;
  message: string;
  hint: string | null;
  source_line: string;
}

const problemsOf = (details: Details): PipelineProblem[] =>
  Array.isArray(details.problems) ? (details.problems as PipelineProblem[]) : [];

const submissionOf = ({ name, pipeline, sets, base }: Draft): Submission => ({
  pipeline,
  name: name.trim() || null,
  sets: sets
    .split("\n")
    .map((line) => line.trim())
    .filter(Boolean),
  base_dir: base.trim() || null,
});

export const SubmitView = ({ place }: { place: Place }) => {
  const [draft, setDraft] = useState<Draft>({ name: "", pipeline: "", sets: "", base: "" });
  const [checked, setChecked] = useState<Checked | null>(null);
  const [problem, setProblem] = useState<Details | null>(null);
  const [isAt, setAt] = useState(false);
  const text = useRef<HTMLTextAreaElement>(null);
  const from = place.query.get("from");
  useEffect(() => {
    if (!from) return;
    const id = Number(from);
    Promise.all([get("/api/v1/runs/{id}", { id }), getText("/api/v1/runs/{id}/pipeline", { id })])
      .then(([run, pipeline]) =>
        setDraft({ name: run.name, pipeline, sets: (run.sets ?? []).join("\n"), base: run.base_dir }),
      )
      .catch((error: unknown) => setProblem(detailsOf(error)));
  }, [from]);

  const change = (some: Partial<Draft>) => {
    setDraft({ ...draft, ...some });
    setChecked(null);
  };
  const ask = async (work: () => Promise<void>) => {
    setAt(true);
    setProblem(null);
    setChecked(null);
    try {
      await work();
    } catch (error) {
      setProblem(detailsOf(error));
    } finally {
      setAt(false);
    }
  };
  const check = () =>
    ask(async () => {
      setChecked(await post("/api/v1/check", {}, submissionOf(draft)));
      announce("The pipeline may be submitted.");
    });
  const submit = () =>
    ask(async () => {
      const run = await post("/api/v1/runs", {}, submissionOf(draft));
      announce(`Run ${run.id} is in the queue.`);
      go(link(["runs", run.id]));
    });
  const showLine = (line: number) => {
    const area = text.current;
    if (!area) return;
    const lines = draft.pipeline.split("\n");
    const start = lines.slice(0, line - 1).reduce((sum, one) => sum + one.length + 1, 0);
    area.focus();
    area.setSelectionRange(start, start + (lines[line - 1]?.length ?? 0));
    area.scrollTop = ((line - 4) * area.scrollHeight) / Math.max(1, lines.length);
  };
  const open = async (file: File | undefined) => {
    if (file) change({ pipeline: await file.text(), name: draft.name || file.name.replace(/\.toml$/, "") });
  };
  return (
    <main id="main" tabIndex={-1}>
      <h1>Submit a run</h1>
      <p class="lead">
        The pipeline is checked as by <code>aha check</code>, on the daemon's machine, before it is queued.
      </p>
      <form
        class="submit"
        onSubmit={(event) => {
          event.preventDefault();
          void submit();
        }}
      >
        <div class="field">
          <label for="pipeline">Pipeline</label>
          <textarea
            id="pipeline"
            ref={text}
            class="code"
            rows={22}
            required
            spellcheck={false}
            placeholder={'[stage.zero]\nkind = "rl"\n…'}
            value={draft.pipeline}
            onInput={(event) => change({ pipeline: event.currentTarget.value })}
          />
          <label class="file-button">
            <span>or from a file</span>{" "}
            <input
              type="file"
              accept=".toml,text/plain"
              onChange={(event) => void open(event.currentTarget.files?.[0])}
            />
          </label>
        </div>
        <div class="rest">
          <div class="field">
            <label for="name">Name</label>
            <input
              id="name"
              maxLength={100}
              placeholder="run"
              value={draft.name}
              onInput={(event) => change({ name: event.currentTarget.value })}
            />
          </div>
          <div class="field">
            <label for="sets">Overrides, one on a line</label>
            <textarea
              id="sets"
              class="code"
              rows={4}
              spellcheck={false}
              placeholder="stage.zero.steps=10"
              value={draft.sets}
              onInput={(event) => change({ sets: event.currentTarget.value })}
            />
          </div>
          <div class="field">
            <label for="base">Folder that relative paths start from</label>
            <input
              id="base"
              class="code"
              placeholder="the one that the daemon was started in"
              value={draft.base}
              onInput={(event) => change({ base: event.currentTarget.value })}
            />
          </div>
          <div class="buttons">
            <button type="button" disabled={isAt || !draft.pipeline.trim()} onClick={() => void check()}>
              Check
            </button>
            <button type="submit" class="primary" disabled={isAt || !draft.pipeline.trim()}>
              {isAt ? "Checking…" : "Submit"}
            </button>
          </div>
          {problem ? <Refused details={problem} showLine={showLine} /> : null}
          {checked ? <Good checked={checked} /> : null}
        </div>
      </form>
    </main>
  );
};

const Refused = ({ details, showLine }: { details: Details; showLine: (line: number) => void }) => {
  const problems = problemsOf(details);
  if (!problems.length) return <Problem details={details} />;
  return (
    <div class="problem" role="alert">
      <p class="what">{plural(problems.length, "problem")}</p>
      <ol class="problems">
        {problems.map((one) => (
          <li key={`${one.line} ${one.key} ${one.message}`}>
            {one.line ? (
              <button type="button" class="quiet" onClick={() => showLine(one.line)}>
                line {one.line}
              </button>
            ) : null}{" "}
            <Text>{one.message}</Text>
            {one.hint ? (
              <div class="hint">
                <b>hint:</b> <Text>{one.hint}</Text>
              </div>
            ) : null}
          </li>
        ))}
      </ol>
    </div>
  );
};

const Good = ({ checked }: { checked: Checked }) => (
  <div class="card good-news">
    <p>
      <b>It may be submitted.</b> It will want {bytes(checked.memory_bytes)} of memory at its peak.
    </p>
    <ol class="strip" aria-label="Stages">
      {checked.stages.map(({ name, kind }) => (
        <li key={name}>
          {name} <span class="soft">{kindName(kind)}</span>
        </li>
      ))}
    </ol>
  </div>
);
