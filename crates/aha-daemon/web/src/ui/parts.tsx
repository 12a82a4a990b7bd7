// Small parts of every view.
import type { ComponentChildren } from "preact";
import type { Details, Status } from "../api/client";

// As the report has it: what is hidden, or turns the direction of a text around, is spelled out.
const HIDDEN = /[^\P{Cc}\n\t]|[\u202a-\u202e\u2066-\u2069]/gu;
export const spelled = (text: string): string =>
  text.replace(HIDDEN, (found) => `\\u{${found.codePointAt(0)?.toString(16)}}`);

/** A text that a model or somebody else wrote: never markup. */
export const Text = ({ children, class: kind = "text" }: { children: string; class?: string }) => (
  <span class={kind}>{spelled(children)}</span>
);

const STATUS_MARKS: Record<Status, string> = {
  queued: "◷",
  running: "▶",
  pausing: "◐",
  paused: "❚❚",
  cancelling: "◐",
  cancelled: "■",
  finished: "✓",
  failed: "✕",
};

export const StatusChip = ({ status }: { status: Status }) => (
  <span class={`chip status ${status}`}>
    <span aria-hidden="true">{STATUS_MARKS[status]} </span>
    {status}
  </span>
);

/** A problem with its remedy. */
export const Problem = ({ details, again }: { details: Details; again?: () => void }) => (
  <div class="problem" role="alert">
    <p class="what">
      <Text>{details.detail}</Text>
    </p>
    {details.hint ? (
      <p class="hint">
        <b>hint:</b> <Text>{details.hint}</Text>
      </p>
    ) : null}
    {again ? (
      <button type="button" onClick={again}>
        Try again
      </button>
    ) : null}
  </div>
);

export const Empty = ({ children }: { children: ComponentChildren }) => <div class="card empty">{children}</div>;

export const Loading = ({ what }: { what: string }) => (
  <p class="soft loading" role="status">
    Loading {what}…
  </p>
);

export const Tile = (props: { name: string; figure: string; unit?: string; note?: ComponentChildren }) => (
  <div class="tile card">
    <div class="name">{props.name}</div>
    <div class="figure">
      {props.figure}
      {props.unit ? <small> {props.unit}</small> : null}
    </div>
    <div class="note">{props.note}</div>
  </div>
);

/** A share as a bar; `label` says what it is. */
export const Meter = ({ label, share, text }: { label: string; share: number; text: string }) => (
  <div
    class="meter"
    role="meter"
    aria-label={label}
    aria-valuenow={Math.round(100 * share)}
    aria-valuemin={0}
    aria-valuemax={100}
    aria-valuetext={text}
  >
    <span style={{ width: `${100 * Math.min(1, Math.max(0, share))}%` }} />
  </div>
);

export const Section = (props: { id: string; title: string; about?: string; children: ComponentChildren }) => (
  <section aria-labelledby={props.id}>
    <header>
      <h2 id={props.id}>{props.title}</h2>
      {props.about ? <p>{props.about}</p> : null}
    </header>
    {props.children}
  </section>
);

const KIND_SHORT: Record<string, string> = { rl: "RL", sft: "SFT", dpo: "DPO", "reward-model": "reward model" };
export const kindName = (kind: string): string => KIND_SHORT[kind] ?? kind;

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];
export const bytes = (count: number): string => {
  let [size, unit] = [count, 0];
  while (size >= 1024 && unit < UNITS.length - 1) [size, unit] = [size / 1024, unit + 1];
  return `${size >= 100 || unit === 0 ? Math.round(size) : size.toFixed(1)} ${UNITS[unit]}`;
};
