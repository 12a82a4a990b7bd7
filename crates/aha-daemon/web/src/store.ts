// A value that components follow.
import { useEffect, useState } from "preact/hooks";

export class Store<T> {
  private readonly followers = new Set<() => void>();

  constructor(private current: T) {}

  get value(): T {
    return this.current;
  }

  set(value: T): void {
    if (Object.is(value, this.current)) return;
    this.current = value;
    for (const follow of this.followers) follow();
  }

  follow(follower: () => void): () => void {
    this.followers.add(follower);
    return () => this.followers.delete(follower);
  }
}

export const useStore = <T>(store: Store<T>): T => {
  const [, setCount] = useState(0);
  useEffect(() => store.follow(() => setCount((count) => count + 1)), [store]);
  return store.value;
};
