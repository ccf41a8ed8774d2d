// Several iterators as one, and how it ends, over rules and connections that a test drives.
import { describe, expect, it } from "vitest";
import type { Connection } from "../src/connection.js";
import { FeedClosedError } from "../src/errors.js";
import { merge, type Follower } from "../src/iterate.js";
import type { SessionUpdate, Updates } from "../src/update.js";

/** A slot of a cluster: what it yields, and what its rules learn. */
class Slot implements Follower {
  readonly log: string[] = [];
  readonly #ready: (string | Error)[] = [];
  #wake = (): void => undefined;

  give(...what: (string | Error)[]): this {
    this.#ready.push(...what);
    this.#wake();
    return this;
  }

  readonly connection = {
    isClosed: false,
    close: async () => {
      this.connection.isClosed = true;
      this.#wake();
    },
  } as Connection & { isClosed: boolean };

  readonly updates = this.#rules();

  async *#rules(): Updates {
    try {
      for (;;) {
        while (!this.#ready.length) {
          if (this.connection.isClosed) throw new FeedClosedError();
          await new Promise<void>((resolve) => (this.#wake = resolve));
        }
        const next = this.#ready.shift() as string | Error;
        if (next instanceof Error) throw next;
        try {
          yield { cursor: next } as SessionUpdate;
        } catch (error) {
          this.log.push(`done ${next}`); // the feed was closed in the body, which has ended
          throw error;
        }
        this.log.push(`done ${next}`);
      }
    } finally {
      this.log.push("left");
    }
  }
}

const cursors = async (updates: Updates, count: number): Promise<string[]> => {
  const taken: string[] = [];
  while (taken.length < count) taken.push(((await updates.next()).value as SessionUpdate).cursor);
  return taken;
};

describe("one iterator over several slots", () => {
  it("yields what comes, from whichever slot", async () => {
    const slots = [new Slot().give("a1", "a2"), new Slot().give("b1")];
    const updates = merge(slots, new Set());
    expect((await cursors(updates, 3)).sort()).toEqual(["a1", "a2", "b1"]);
    slots[1]?.give("b2");
    expect(await cursors(updates, 1)).toEqual(["b2"]);
    await updates.return();
  });

  it("that is left tells no slot that the last update is done, and each that it is left", async () => {
    const slots = [new Slot().give("a1", "a2"), new Slot().give("b1")];
    for await (const { cursor } of merge(slots, new Set())) if (cursor === "a1") break;
    expect(slots.map(({ log }) => log)).toEqual([["left"], ["left"]]);
    expect(slots.every(({ connection }) => connection.isClosed)).toBe(true);
  });

  it("whose signal is aborted in the body has done that update, and not the next, which nobody got", async () => {
    const slots = [new Slot().give("a1"), new Slot().give("b1")];
    const controller = new AbortController();
    const taken: string[] = [];
    for await (const { cursor } of merge(slots, new Set(), controller.signal)) {
      taken.push(cursor);
      controller.abort();
    }
    expect(taken).toHaveLength(1);
    const logs = slots.flatMap(({ log }) => log);
    expect(logs.sort()).toEqual([`done ${taken[0]}`, "left", "left"].sort());
  });

  it("ends at once when `return` is called while it waits", async () => {
    const slots = [new Slot(), new Slot()];
    const updates = merge(slots, new Set());
    const next = updates.next();
    await updates.return();
    expect(await next).toEqual({ done: true, value: undefined });
  });

  it("throws the error of a slot, and closes the others", async () => {
    const slots = [new Slot(), new Slot().give(new Error("WRONGTYPE"))];
    await expect(merge(slots, new Set()).next()).rejects.toThrow("WRONGTYPE");
    expect(slots.map(({ log }) => log)).toEqual([["left"], ["left"]]);
  });

  it("can be closed as long as it runs, and leaves nothing behind", async () => {
    const open = new Set<() => Promise<void>>();
    const controller = new AbortController();
    const updates = merge([new Slot()], open, controller.signal);
    expect(open.size).toBe(0);
    const next = updates.next();
    expect(open.size).toBe(1);
    for (const close of open) await close();
    expect(await next).toEqual({ done: true, value: undefined });
    expect(open.size).toBe(0);
  });

  it("whose signal was aborted before yields nothing", async () => {
    const updates = merge([new Slot().give("a1")], new Set(), AbortSignal.abort());
    expect(await updates.next()).toEqual({ done: true, value: undefined });
  });
});
