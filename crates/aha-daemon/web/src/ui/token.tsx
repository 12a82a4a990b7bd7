// Asks for the token where the daemon requires one.
import { useEffect, useRef, useState } from "preact/hooks";
import { setToken, token } from "../api/token";

export const TokenForm = () => {
  const [text, setText] = useState("");
  const input = useRef<HTMLInputElement>(null);
  useEffect(() => input.current?.focus(), []);
  return (
    <main id="main" tabIndex={-1} class="token">
      <form
        class="card"
        onSubmit={(event) => {
          event.preventDefault();
          setToken(text.trim());
        }}
      >
        <h1>Token</h1>
        <p class="lead">
          {token() ? "The daemon doesn't know this token." : "This daemon answers only those who have its token."} It is
          in the file <code>token</code> of the daemon's home folder, or is what it was started with.
        </p>
        <label for="token">Token</label>
        <input
          id="token"
          ref={input}
          type="password"
          autocomplete="off"
          required
          value={text}
          onInput={(event) => setText(event.currentTarget.value)}
        />
        <button type="submit" class="primary">
          Go on
        </button>
        <p class="soft small">It is kept until this tab of the browser is closed.</p>
      </form>
    </main>
  );
};
