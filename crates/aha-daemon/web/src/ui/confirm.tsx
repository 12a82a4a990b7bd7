// A question that is answered before something can't be undone.
import { useEffect, useRef } from "preact/hooks";
import { Store, useStore } from "../store";

interface Question {
  title: string;
  text: string;
  yes: string;
  answer: (isYes: boolean) => void;
}

const asked = new Store<Question | null>(null);

export const confirm = (title: string, text: string, yes: string): Promise<boolean> =>
  new Promise((answer) => asked.set({ title, text, yes, answer }));

export const Confirmer = () => {
  const question = useStore(asked);
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    if (question) dialog.current?.showModal();
  }, [question]);
  if (!question) return null;
  const close = (isYes: boolean) => {
    dialog.current?.close();
    asked.set(null);
    question.answer(isYes);
  };
  return (
    <dialog ref={dialog} class="card" aria-labelledby="question" onCancel={() => close(false)}>
      <h2 id="question">{question.title}</h2>
      <p>{question.text}</p>
      <div class="buttons">
        <button type="button" onClick={() => close(false)}>
          Leave it
        </button>
        <button type="button" class="danger" onClick={() => close(true)}>
          {question.yes}
        </button>
      </div>
    </dialog>
  );
};
