import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { clock } from "../src/clock.js";
import type { Connection } from "../src/connection.js";
import { keysOf } from "../src/keys.js";
import { mirrorReading } from "../src/mirror_reading.js";
import { Partition } from "../src/stream.js";

const system = vi.hoisted(() => ({ uptime: 1000 as number | undefined }));
vi.mock("node:os", () => ({
  uptime: () => {
    if (system.uptime === undefined) throw new Error("not allowed");
    return system.uptime;
  },
}));

let now = 0;
beforeEach(() => {
  vi.spyOn(performance, "now").mockImplementation(() => now);
});
afterEach(() => {
  vi.restoreAllMocks();
});

/** Lets time pass, in milliseconds; `asleep`: while the machine sleeps. Returns by how much the clock goes on. */
function pass(awake: number, asleep = 0): number {
  const before = clock();
  now += awake;
  if (system.uptime !== undefined) system.uptime += (awake + asleep) / 1000;
  return Math.round(clock() - before);
}

it("goes on while the machine sleeps", () => {
  expect([pass(50), pass(50, 3_600_000), pass(2000)]).toEqual([50, 3_600_050, 2000]);
});

it("takes no rounded seconds for sleep", () => {
  const before = clock();
  for (let tick = 0; tick < 100; tick++) {
    now += 50;
    system.uptime = Math.floor(now / 1000);
    clock();
  }
  expect(Math.round(clock() - before)).toBe(5000);
});

it("goes on where nobody says how long the machine has been running", () => {
  system.uptime = undefined;
  expect(pass(50)).toBe(50);
});

it("tells a mirror that the machine has slept, and not that somebody has set the time of day", async () => {
  system.uptime = 1000;
  let set = 1_795_422_700_000;
  vi.spyOn(Date, "now").mockImplementation(() => set);
  const reading = mirrorReading(1, { maxAge: 5000, keepEnded: 0, longestWait: 2500, onReady: () => undefined });
  const partition = new Partition(0, keysOf("{clerk}"));
  partition.goTo("1-1");
  await reading.reached?.({} as Connection, partition, clock());
  expect(reading.isTooOld(Date.now())).toBe(false);
  set += 3_600_000;
  expect([reading.isTooOld(Date.now()), reading.isTooOld(Date.now())]).toEqual([false, false]);
  set += 3_600_000;
  system.uptime += 3600;
  expect([reading.isTooOld(Date.now()), reading.isTooOld(Date.now())]).toEqual([true, true]);
});
