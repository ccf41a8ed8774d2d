// What stands for Redis in tests: the commands that the rules of a feed use, as Redis 7 executes them.
import type { Command, Reply } from "./connection.js";
import { START, compareCursors } from "./cursors.js";
import type { RawEntry } from "./stream.js";

interface Group {
  delivered: string;
  /** When each consumer was heard of last, in Unix milliseconds. */
  readonly consumers: Map<string, number>;
  readonly pending: Map<string, { consumer: string; at: number }>;
}

interface Stream {
  entries: RawEntry[];
  last: string;
  added: number;
  readonly groups: Map<string, Group>;
}

/** What waits for news, and is told of it. */
export interface Follower {
  /** The channel that it has subscribed to, and what has come there since. */
  readonly channel: string | undefined;
  readonly received: string[];
  /** Whether it waits. */
  readonly isWaiting: boolean;
  /** Looks whether what it waits for is there. */
  look(): void;
}

export class MemoryRedis {
  readonly hashes = new Map<string, Record<string, string>>();
  readonly sets = new Map<string, Map<string, number>>();
  readonly streams = new Map<string, Stream>();
  /** Those that have begun and are not closed; who has waited longest comes first, and is served first. */
  readonly followers = new Set<Follower>();
  /** What is thrown in place of responses, while Redis is away. */
  failure: Error | undefined;
  #last = START;
  #onIdle: (() => void)[] = [];

  /** The next id of an entry: greater than all before, also after a `flush`. */
  nextId(): string {
    const [ms = "", sequence = ""] = this.#last.split("-");
    const now = Date.now();
    return (this.#last = now > Number(ms) ? `${now}-0` : `${ms}-${Number(sequence) + 1}`);
  }

  add(key: string, id: string, fields: string[]): void {
    const stream = this.#stream(key, true);
    stream.entries.push([id, fields]);
    stream.last = id;
    stream.added++;
    this.wake();
  }

  /** Sets a member's score in a sorted set; undefined: removes the member. */
  setMember(key: string, member: string, score: number | undefined): void {
    const set = this.sets.get(key) ?? new Map<string, number>();
    if (score === undefined) set.delete(member);
    else set.set(member, score);
    this.sets.set(key, set);
  }

  publish(channel: string, message: string): void {
    if (this.failure) return;
    for (const follower of this.followers) if (follower.channel === channel) follower.received.push(message);
    this.wake();
  }

  /** Lets all that wait look again. */
  wake(): void {
    for (const follower of [...this.followers]) follower.look();
  }

  /** Resolves when each iterator that has begun waits. */
  idle(): Promise<void> {
    return new Promise((resolve) => {
      this.#onIdle.push(resolve);
      this.checkIdle();
    });
  }

  checkIdle(): void {
    if (![...this.followers].every(({ isWaiting }) => isWaiting)) return;
    for (const resolve of this.#onIdle.splice(0)) resolve();
  }

  /** The response to a command; null also stands for one that is still to come, if the command says BLOCK. */
  run([name, ...given]: Command): Reply {
    const [key = "", second = "", third = "", ...more] = given.map(String);
    switch (name) {
      case "HMGET":
        return [second, third, ...more].filter(Boolean).map((field) => this.hashes.get(key)?.[field] ?? null);
      case "SCAN": {
        const beginning = third.slice(0, -1).replace(/\\(.)/g, "$1");
        return ["0", [...this.hashes.keys()].filter((each) => each.startsWith(beginning))];
      }
      case "ZRANGEBYSCORE":
        return [...(this.sets.get(key) ?? [])]
          .filter(([, score]) => score > Number(second.slice(1)))
          .sort(([a, first], [b, other]) => first - other || (a < b ? -1 : 1))
          .map(([member]) => member);
      case "XRANGE": {
        const from = second.replace("(", "");
        const least = second === from ? 0 : 1;
        const isIn = ([id]: RawEntry): boolean =>
          compareCursors(id, from) >= least && (third === "+" || compareCursors(id, third) <= 0);
        return this.#entries(key)
          .filter(isIn)
          .slice(0, more.length ? Number(more[1]) : undefined);
      }
      case "XREVRANGE":
        return this.#entries(key).slice(-1);
      case "XINFO":
        return this.#info(key, second, third);
      case "XREAD":
        return this.#read(given, behind);
      case "XREADGROUP":
        return this.#read(given.slice(3), (stream, cursor, count, events) => {
          const group = groupIn(stream, second, events);
          group.consumers.set(third, Date.now());
          if (cursor !== ">") {
            const own = [...group.pending].filter(([, { consumer }]) => consumer === third).map(([id]) => id);
            const ids = own.filter((id) => compareCursors(id, cursor) > 0).sort(compareCursors);
            for (const id of ids.slice(0, count)) group.pending.set(id, { consumer: third, at: Date.now() });
            return ids.slice(0, count).map((id) => stream?.entries.find((entry) => entry[0] === id) ?? [id, null]);
          }
          const entries = behind(stream, group.delivered, count);
          for (const [id] of entries) {
            group.pending.set(id, { consumer: third, at: Date.now() });
            group.delivered = id;
          }
          return entries;
        });
      case "XACK": {
        const pending = this.streams.get(key)?.groups.get(second)?.pending;
        return [third, ...more].filter((id) => pending?.delete(id)).length;
      }
      case "XPENDING": {
        const { pending } = groupIn(this.streams.get(key), second, key);
        const [least = "", , , count = ""] = more;
        return [...pending]
          .map(([id, { consumer, at }]): [string, string, number, number] => [id, consumer, Date.now() - at, 1])
          .filter(([, , idle]) => idle >= Number(least))
          .sort(([a], [b]) => compareCursors(a, b))
          .slice(0, Number(count));
      }
      case "XAUTOCLAIM": {
        const stream = this.streams.get(key);
        const { pending, consumers } = groupIn(stream, second, key);
        const [least = "", start = "", , count = ""] = more;
        consumers.set(third, Date.now());
        const due = [...pending].filter(
          ([id, { at }]) => Date.now() - at >= Number(least) && compareCursors(id, start) >= 0,
        );
        const ids = due
          .map(([id]) => id)
          .sort(compareCursors)
          .slice(0, Number(count));
        const isThere = (id: string): boolean => stream?.entries.some((entry) => entry[0] === id) ?? false;
        for (const id of ids) isThere(id) ? pending.set(id, { consumer: third, at: Date.now() }) : pending.delete(id);
        return [START, ids.filter(isThere), ids.filter((id) => !isThere(id))];
      }
      case "XGROUP":
        return this.#change(key, second, third, more);
    }
    throw new Error(`ERR unknown command '${name}'`);
  }

  #stream(key: string, isMade = false): Stream {
    let stream = this.streams.get(key);
    if (!stream && !isMade) throw new Error("ERR no such key");
    if (!stream) this.streams.set(key, (stream = { entries: [], last: START, added: 0, groups: new Map() }));
    return stream;
  }

  #entries(key: string): RawEntry[] {
    return this.streams.get(key)?.entries ?? [];
  }

  #info(what: string, key: string, name: string): Reply {
    const { entries, last, added, groups } = this.#stream(key);
    if (what === "STREAM") {
      const ends = ["first-entry", entries[0] ?? null, "last-entry", entries.at(-1) ?? null];
      return ["length", entries.length, "last-generated-id", last, "entries-added", added, ...ends];
    }
    if (what === "GROUPS") {
      return [...groups].map(([each, { delivered }]) => ["name", each, "last-delivered-id", delivered]);
    }
    const { consumers, pending } = groupIn(this.streams.get(key), name, key);
    return [...consumers].map(([each, heardAt]) => {
      const has = [...pending.values()].filter(({ consumer }) => consumer === each).length;
      return ["name", each, "pending", has, "idle", Date.now() - heardAt];
    });
  }

  #read(
    given: readonly (string | number)[],
    entriesOf: (stream: Stream | undefined, cursor: string, count: number, events: string) => RawEntry[],
  ): Reply {
    const names = given.slice(given.indexOf("STREAMS") + 1).map(String);
    const cursors = names.splice(names.length / 2);
    const count = Number(given[1]); // COUNT comes first
    const found = names.map((name, index): [string, RawEntry[], boolean] => {
      const cursor = cursors[index] as string;
      return [name, entriesOf(this.streams.get(name), cursor, count, name), entriesOf !== behind && cursor !== ">"];
    });
    // Where a consumer reads what it has already, none is a response, too.
    const response = found.filter(([, entries, isOwn]) => isOwn || entries.length);
    return response.length ? response.map(([name, entries]) => [name, entries]) : null;
  }

  #change(what: string, key: string, name: string, [id = ""]: string[]): Reply {
    if (what !== "CREATE" && !this.streams.has(key)) {
      throw new Error("ERR The XGROUP subcommand requires the key to exist.");
    }
    const { groups } = this.#stream(key, true);
    if (what === "CREATE") {
      if (groups.has(name)) throw new Error("BUSYGROUP Consumer Group name already exists");
      groups.set(name, { delivered: id, consumers: new Map(), pending: new Map() });
      return "OK";
    }
    const group = groupIn(this.streams.get(key), name, key);
    if (what === "SETID") {
      group.delivered = id;
      this.wake();
      return "OK";
    }
    const dropped = [...group.pending].filter(([, { consumer }]) => consumer === id);
    for (const [each] of dropped) group.pending.delete(each);
    group.consumers.delete(id);
    return dropped.length;
  }
}

const behind = (stream: Stream | undefined, cursor: string, count: number): RawEntry[] =>
  (stream?.entries ?? []).filter(([id]) => compareCursors(id, cursor) > 0).slice(0, count);

function groupIn(stream: Stream | undefined, name: string, key: string): Group {
  const group = stream?.groups.get(name);
  if (!group) throw new Error(`NOGROUP No such key '${key}' or consumer group '${name}'`);
  return group;
}
