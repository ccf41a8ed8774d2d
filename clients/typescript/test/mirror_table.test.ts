// What a mirror keeps of sessions, and for how long; before anything connects.
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { clock } from "../src/clock.js";
import type { Connection } from "../src/connection.js";
import { keysOf } from "../src/keys.js";
import { mirrorReading } from "../src/mirror_reading.js";
import { MAX_KEPT_MS, Table, isLiveAt, userOf, type Kept } from "../src/mirror_table.js";
import { Partition } from "../src/stream.js";
import { message } from "./support/messages.js";

const NOW = 1_795_422_700_123;
const HOUR = 3_600_000;
const DAY = 86_400_000;
const WEEK = 7 * DAY;
const OPTIONS = { maxAge: 5000, keepEnded: WEEK, longestWait: 2500 };

let table: Table;
beforeEach(() => {
  table = new Table(WEEK);
});
afterEach(() => {
  vi.restoreAllMocks();
});

const put = (id: string, { end = (NOW + DAY) as number | null, status = "active", into = table } = {}): void => {
  const isOpen = status === "active" || status === "pending";
  into.put(id, "user_1", end, isOpen, status === "active", NOW);
};
const isLive = (id: string, now: number): boolean => isLiveAt(table.kept.get(id) as Kept, now);
const whose = (id: string): string | null => userOf(table.kept.get(id));
const isKept = (id: string): boolean => table.kept.has(id);

it.each([1, 255, 256, NOW, 2 ** 40, 2 ** 46 + 1])("a session is live until its end: %d", (end) => {
  put("sess_1", { end });
  expect([isLive("sess_1", end - 1), isLive("sess_1", end), whose("sess_1")]).toEqual([true, false, "user_1"]);
});

it.each([null, Number.MAX_SAFE_INTEGER])(
  "a session without an end, or with one that nobody lives to see, never ends: %d",
  (end) => {
    put("sess_1", { end });
    table.forget("sess_1", NOW + 1000 * DAY);
    expect(isLive("sess_1", NOW + 1000 * DAY)).toBe(true);
  },
);

it.each([NOW + DAY, null])("a pending session is not live whatever the time is, and has a user: %d", (end) => {
  put("sess_1", { end, status: "pending" });
  expect([isLive("sess_1", 0), isLive("sess_1", NOW), whose("sess_1")]).toEqual([false, false, "user_1"]);
});

it("of a session that ended, no user is kept", () => {
  put("sess_1", { status: "revoked" });
  expect([whose("sess_1"), isLive("sess_1", 0)]).toEqual([null, false]);
});

it("of a user whose id is as long as it may be, all is kept", () => {
  const user = "u".repeat(128);
  table.put("s".repeat(128), user, null, true, true, NOW);
  expect(whose("s".repeat(128))).toBe(user);
});

it("open sessions are counted once", () => {
  put("sess_1");
  put("sess_1", { end: null });
  put("sess_2", { status: "pending" });
  put("sess_3", { status: "ended" });
  expect(table.open).toBe(2);
  put("sess_2", { status: "removed" });
  put("sess_2", { status: "removed" });
  expect(table.open).toBe(1);
  put("sess_2");
  expect(table.open).toBe(2);
});

it.each([
  [NOW - DAY, WEEK],
  [NOW + DAY, WEEK + DAY],
  [NOW + 500 * DAY, MAX_KEPT_MS],
  [null, MAX_KEPT_MS],
])("a session that ended is kept for as long as by the relay, and an hour more at most: %d", (end, kept) => {
  put("sess_1", { end, status: "ended" });
  table.forget("sess_1", NOW + kept);
  expect(isKept("sess_1")).toBe(true);
  table.forget("sess_1", NOW + kept + HOUR);
  expect(isKept("sess_1")).toBe(false);
});

it.each(["active", "pending"])("a session whose end passed is kept as one that ended: %s", (status) => {
  put("sess_1", { status });
  table.forget("sess_1", NOW + DAY);
  expect([typeof table.kept.get("sess_1"), table.open]).toEqual(["number", 0]);
  table.forget("sess_1", NOW + DAY + WEEK);
  expect(isKept("sess_1")).toBe(true);
  table.forget("sess_1", NOW + DAY + WEEK + HOUR);
  expect(isKept("sess_1")).toBe(false);
});

it("a session that is gone already is no fault", () => {
  table.forget("sess_1", NOW);
  expect(table.kept.size).toBe(0);
});

/** A reading of a table that has these sessions, and the time that it sees. */
function kept(count: number): { clock: { now: number; set: number }; look: () => Promise<number> } {
  const clock = { now: 0, set: 0 };
  vi.spyOn(performance, "now").mockImplementation(() => clock.now);
  vi.spyOn(Date, "now").mockImplementation(() => NOW + clock.now + clock.set);
  let held = 0;
  const growing = vi.spyOn(Table.prototype, "forget");
  const reading = mirrorReading(1, { ...OPTIONS, onReady: () => undefined });
  const partition = new Partition(0, keysOf("{clerk}"));
  partition.goTo("1-1");
  reading.begin?.(partition);
  const connection = {
    ask: async (...commands: unknown[]) => commands.map(() => ["0", "ended", "user_1", "1-1", `${NOW}`]),
  } as unknown as Connection;
  const keys = Array.from({ length: count }, (_, number) => partition.keys.session(`sess_${number}`));
  const look = async (): Promise<number> => {
    if (!held) await reading.found(connection, partition, keys);
    held ||= count;
    growing.mockClear();
    await reading.reached?.(connection, partition, clock.now);
    return growing.mock.calls.filter(([id]) => reading.status(id, NOW) === "unknown").length;
  };
  return { clock, look };
}

it("all sessions are looked at in parts, once an hour", async () => {
  const { clock, look } = kept(5000);
  expect(await look()).toBe(0);
  clock.now = 500 * DAY;
  expect([await look(), await look(), await look(), await look(), await look()]).toEqual([0, 2000, 2000, 1000, 0]);
});

it("nothing is forgotten because somebody set the clock", async () => {
  const { clock, look } = kept(10);
  await look();
  clock.set = 500 * DAY;
  clock.now = HOUR;
  expect([await look(), await look()]).toEqual([0, 0]);
  clock.set = 0;
  clock.now = 2 * HOUR;
  expect([await look(), await look()]).toEqual([0, 0]);
  clock.now = 500 * DAY;
  expect([await look(), await look()]).toEqual([0, 10]);
});

it("a mirror is ready only once each partition is", async () => {
  const ready = vi.fn();
  const reading = mirrorReading(2, { ...OPTIONS, maxAge: Infinity, onReady: ready });
  const partitions = [0, 1].map((number) => new Partition(number, keysOf("{clerk}")));
  for (const partition of partitions) partition.goTo("1-1");
  const connection = {} as Connection; // it is asked nothing
  await reading.reached?.(connection, partitions[0] as Partition, 1);
  expect([reading.knownAt(), reading.isTooOld(Date.now()), ready.mock.calls.length]).toEqual([-Infinity, true, 0]);
  await reading.reached?.(connection, partitions[1] as Partition, 2);
  expect([reading.knownAt(), reading.isTooOld(Date.now()), ready.mock.calls.length]).toEqual([1, false, 1]);
});

it("a mirror that has ended is not younger for what is still read", async () => {
  const reading = mirrorReading(1, { ...OPTIONS, onReady: () => undefined });
  const partition = new Partition(0, keysOf("{clerk}"));
  partition.goTo("1-1");
  await reading.reached?.({} as Connection, partition, clock());
  expect(reading.isTooOld(Date.now())).toBe(false);
  reading.end();
  await reading.reached?.({} as Connection, partition, clock());
  expect(reading.isTooOld(Date.now())).toBe(true);
});

it("a session that is forgotten between two looks at it is not there", async () => {
  const reading = mirrorReading(1, { ...OPTIONS, onReady: () => undefined });
  const partition = new Partition(0, keysOf("{clerk}"));
  const ask = async (...commands: string[][]) =>
    commands.map(([, , field]) => (field === "state" ? [null] : ["1", "active", "user_1", "1-1", null]));
  const found = await reading.found({ ask } as unknown as Connection, partition, ["{clerk}:session:sess_1"]);
  expect([[...found], reading.status("sess_1", NOW)]).toEqual([[], "unknown"]);
});

it("a hash that is older than the entry on whose account it is read does not undo that", async () => {
  const reading = mirrorReading(1, { ...OPTIONS, onReady: () => undefined });
  const partition = new Partition(0, keysOf("{clerk}"));
  partition.goTo("2-1");
  const json = message({ id: "sess_1", status: "ended", revision: 2 });
  reading.entry(partition.entry(["2-1", ["outcome", "applied", "session_id", "sess_1", "message", json]]), partition);
  const ask = async (...commands: string[][]) => commands.map(() => ["1", "active", "user_1", "1-1", ""]);
  await reading.reached?.({ ask } as unknown as Connection, partition, clock());
  expect(reading.status("sess_1", NOW)).toBe("ended");
});

it("a key that is no session's is not taken for one", async () => {
  const reading = mirrorReading(1, { ...OPTIONS, onReady: () => undefined });
  const partition = new Partition(0, keysOf("{clerk}"));
  const ask = async (...commands: string[][]) => commands.map(() => ["1", "active", "user_1", "1-1", ""]);
  await reading.found({ ask } as unknown as Connection, partition, ["{clerk}:session:sess_\u0131"]);
  expect(reading.status("sess_1", NOW)).toBe("unknown"); // \u0131 ends in the byte of "1"
});
