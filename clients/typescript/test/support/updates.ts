import type { SessionUpdate } from "../../src/index.js";

/** The next `count` updates of an iterator, which goes on. */
export async function take(updates: AsyncIterator<SessionUpdate>, count: number): Promise<SessionUpdate[]> {
  const taken: SessionUpdate[] = [];
  while (taken.length < count) {
    const { value, done } = await updates.next();
    if (done) throw new Error(`the iterator ended after ${taken.length} updates`);
    taken.push(value);
  }
  return taken;
}

/** What each update is about, in short: `sess_1 ended 2`. */
export const briefly = (updates: readonly SessionUpdate[]): string[] =>
  updates.map(
    ({ session, revision, isSnapshot }) => `${session.id} ${session.status} ${revision}${isSnapshot ? "*" : ""}`,
  );

/** Collects what an iterator yields, until it ends; `error`: what it threw. */
export class Collector {
  readonly updates: SessionUpdate[] = [];
  readonly done: Promise<unknown>;
  error: unknown;
  #wake = (): void => undefined;

  constructor(updates: AsyncIterable<SessionUpdate>) {
    this.done = (async () => {
      try {
        for await (const update of updates) {
          this.updates.push(update);
          this.#wake();
        }
      } catch (error) {
        this.error = error;
      }
      this.#wake();
      return this.error;
    })();
  }

  /** Resolves when there are as many updates; rejects when the iterator ends before. */
  async has(count: number): Promise<SessionUpdate[]> {
    let isOver = false;
    void this.done.then(() => ((isOver = true), this.#wake()));
    while (this.updates.length < count) {
      if (isOver) throw this.error ?? new Error(`it ended after ${this.updates.length} updates`);
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
    return this.updates;
  }
}
