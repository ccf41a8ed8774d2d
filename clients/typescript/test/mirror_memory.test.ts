// A mirror of sessions in memory, as a test of somebody's own program uses it.
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { MirrorTooOldError, type Mirror } from "../src/index.js";
import { memoryFeed, type MemoryFeed } from "../src/testing.js";

let memory: MemoryFeed;
let mirror: Mirror;

async function begin(): Promise<void> {
  memory = memoryFeed();
  memory.signIn("user_1", { id: "sess_1" });
  mirror = memory.feed.mirror({ onReconnect: () => undefined });
  await mirror.ready();
}
afterEach(async () => {
  vi.useRealTimers();
  vi.restoreAllMocks();
  await memory.feed.close();
});

describe.each(["real", "fake"])("with a %s clock, it", (clock) => {
  beforeEach(async () => {
    if (clock === "fake") vi.useFakeTimers();
    await begin();
  });

  it("knows each event as soon as the feed is idle", async () => {
    expect([mirror.status("sess_1"), mirror.userId("sess_1"), mirror.size]).toEqual(["live", "user_1", 1]);
    const { session } = memory.signIn("user_2", { status: "pending" });
    await memory.idle();
    expect([mirror.status(session.id), mirror.size]).toEqual(["ended", 2]);
    memory.update(session.id, { status: "active" });
    memory.end("sess_1");
    await memory.idle();
    expect([mirror.status(session.id), mirror.status("sess_1"), mirror.size]).toEqual(["live", "ended", 1]);
  });

  it.each([
    ["trim", () => memory.trim(), "live"],
    ["flush", () => memory.flush(), "unknown"],
  ])("reads all again after %s", async (_, lose, status) => {
    memory.signIn("user_1", { id: "sess_2" });
    await memory.idle();
    lose();
    memory.signIn("user_1", { id: "sess_3" });
    await memory.idle();
    expect(["sess_1", "sess_2", "sess_3"].map((id) => mirror.status(id))).toEqual([status, status, "live"]);
  });

  it("grows too old while Redis is away, and no older after that", async () => {
    memory.fail();
    const now = performance.now.bind(performance);
    vi.spyOn(performance, "now").mockImplementation(() => now() + 5001);
    expect(() => mirror.status("sess_1")).toThrow(MirrorTooOldError);
    memory.restore();
    memory.end("sess_1");
    await memory.idle();
    expect(mirror.status("sess_1")).toBe("ended");
  });

  it("ends with the feed", async () => {
    await memory.feed.close();
    expect(() => mirror.status("sess_1")).toThrow("The mirror is closed.");
  });
});

it("sees the end of a session pass where a test sets the clock", async () => {
  await begin();
  vi.setSystemTime(Date.now() + 8 * 86_400_000);
  expect(mirror.status("sess_1")).toBe("ended");
});

it("keeps young while a test lets fake time pass", async () => {
  vi.useFakeTimers();
  await begin();
  await vi.advanceTimersByTimeAsync(60_000);
  expect(mirror.status("sess_1")).toBe("live");
  expect(mirror.age).toBeLessThanOrEqual(2500);
});

it.each([7000, Infinity])("its error ends with one full stop, whatever Redis says: %d", (age) => {
  const { message } = new MirrorTooOldError(age, 5000, "it has ended, since WRONGPASS user is disabled.");
  expect(message).toMatch(/: it has ended, since WRONGPASS user is disabled\.$/);
});
