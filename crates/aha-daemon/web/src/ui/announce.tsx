// What screen readers say of changes that only eyes would see.
import { Store, useStore } from "../store";

const said = new Store("");

export const announce = (text: string): void => {
  // The same text again is a change only if it was something else in between.
  said.set("");
  requestAnimationFrame(() => said.set(text));
};

export const Announcer = () => (
  <p class="hidden" role="status" aria-live="polite">
    {useStore(said)}
  </p>
);
