// What can be done to a run.
import { useState } from "preact/hooks";
import { type Details, type Run, post, remove } from "../api/client";
import { detailsOf } from "../data/ask";
import { canCancel, canPause, canResume, hasProcess } from "../data/runs";
import { announce } from "./announce";
import { confirm } from "./confirm";
import { Problem } from "./parts";

type Act = "pause" | "resume" | "cancel" | "delete";

const DONE: Record<Act, string> = {
  pause: "will be paused after a checkpoint",
  resume: "goes on",
  cancel: "is cancelled",
  delete: "is deleted",
};

const act = async (run: Run, what: Act): Promise<void> => {
  const id = run.id;
  if (what === "delete") return remove("/api/v1/runs/{id}", { id });
  await post(`/api/v1/runs/{id}/${what}`, { id });
};

const isSure = async (run: Run, what: Act): Promise<boolean> => {
  if (what === "cancel") {
    const text = "It can't be resumed. What it wrote stays until the run is deleted.";
    return confirm(`Cancel run ${run.id}, ${run.name}?`, text, "Cancel the run");
  }
  if (what === "delete") {
    const text = "Its tables, checkpoints and models are removed from the disk.";
    return confirm(`Delete run ${run.id}, ${run.name}?`, text, "Delete all of it");
  }
  return true;
};

/** Buttons for what the run's state allows; what the daemon refuses is shown beneath. */
export const Actions = ({ run, after }: { run: Run; after?: (what: Act) => void }) => {
  const [isAt, setAt] = useState(false);
  const [problem, setProblem] = useState<Details | null>(null);
  const button = (what: Act, label: string, isPossible: boolean) =>
    isPossible ? (
      <button
        type="button"
        class={what === "cancel" || what === "delete" ? "quiet" : ""}
        disabled={isAt}
        aria-label={`${label} run ${run.id}, ${run.name}`}
        onClick={async () => {
          if (!(await isSure(run, what))) return;
          setAt(true);
          try {
            await act(run, what);
            setProblem(null);
            announce(`Run ${run.id} ${DONE[what]}.`);
            after?.(what);
          } catch (error) {
            setProblem(detailsOf(error));
          } finally {
            setAt(false);
          }
        }}
      >
        {label}
      </button>
    ) : null;
  return (
    <div class="actions">
      {button("pause", "Pause", canPause(run.status))}
      {button("resume", "Resume", canResume(run.status))}
      {button("cancel", "Cancel", canCancel(run.status))}
      {button("delete", "Delete", !hasProcess(run.status))}
      {problem ? <Problem details={problem} /> : null}
    </div>
  );
};
