// What a run was made of, and what it has written beside its tables.
import { grouped, moment } from "report:numbers.js";
import { type Run, get, getText } from "../api/client";
import { useAsked } from "../data/ask";
import { link } from "../router";
import { Problem, Section, Text, bytes } from "../ui/parts";

export const FilesView = ({ run }: { run: Run }) => {
  const { id } = run;
  const keys = [id, run.status, run.progress?.stage];
  const pipeline = useAsked(() => getText("/api/v1/runs/{id}/pipeline", { id }), [id]);
  const checkpoints = useAsked((signal) => get("/api/v1/runs/{id}/checkpoints", { id }, undefined, signal), keys);
  const models = useAsked((signal) => get("/api/v1/runs/{id}/models", { id }, undefined, signal), keys);
  const found = models.value?.models ?? [];
  return (
    <>
      <Section id="pipeline" title="Pipeline" about="As it was submitted.">
        {pipeline.problem ? <Problem details={pipeline.problem} again={pipeline.again} /> : null}
        <div class="controls">
          <a class="button" href={link(["submit"], { from: id })}>
            Submit it again…
          </a>
          <span class="soft">
            Run directory <Text class="mono">{run.run_dir}</Text>
          </span>
        </div>
        <pre class="file card" tabIndex={0}>
          <Text class="">{pipeline.value ?? ""}</Text>
        </pre>
      </Section>
      <Section id="models" title="Models" about="Of the stages that are done, in Hugging Face's layout.">
        {models.problem ? <Problem details={models.problem} again={models.again} /> : null}
        <FilesTable
          head={["Stage", "File", "Size"]}
          rows={found.flatMap(({ name, files }) => files.map((file) => [name, file.path, bytes(file.bytes)]))}
        />
      </Section>
      <Section id="checkpoints" title="Checkpoints" about="What the run goes on from.">
        {checkpoints.problem ? <Problem details={checkpoints.problem} again={checkpoints.again} /> : null}
        <FilesTable
          head={["Stage", "Step", "Written", "Size"]}
          rows={(checkpoints.value?.checkpoints ?? []).map((of) => [
            of.stage,
            grouped(of.step),
            of.written_at_us ? moment(of.written_at_us) : "",
            bytes(of.bytes),
          ])}
        />
      </Section>
    </>
  );
};

const FilesTable = ({ head, rows }: { head: string[]; rows: string[][] }) =>
  rows.length ? (
    <div class="card scroll">
      <table>
        <thead>
          <tr>
            {head.map((text) => (
              <th key={text} scope="col" class={text === "Size" ? "n" : ""}>
                {text}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <tr key={row.join(" ")}>
              {row.map((text, at) => (
                <td key={at} class={at === row.length - 1 ? "n" : ""}>
                  <Text>{text}</Text>
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  ) : (
    <p class="soft">none yet</p>
  );
