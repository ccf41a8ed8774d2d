import { describe, expect, it } from "vitest";
import { NOTHING, START, compareCursors, later, wholeCursor } from "../src/cursors.js";
import { partitionOf, split } from "../src/keys.js";
import { slotOf } from "../src/clients/cluster.js";

describe("cursors", () => {
  it("compare as pairs of numbers of 64 bits", () => {
    const sorted = [
      START,
      NOTHING,
      "2-0",
      "10-0",
      "9007199254740993-1",
      "9007199254740993-10",
      "18446744073709551615-0",
    ];
    expect([...sorted].reverse().sort(compareCursors)).toEqual(sorted);
    expect(compareCursors("9007199254740993-0", "9007199254740992-0")).toBeGreaterThan(0);
    expect(later("9-0", "10-0")).toBe("10-0");
  });

  it.each([
    ["1795422761000-7", "1795422761000-7"],
    ["00017-0", "17-0"],
    ["07-010", "7-10"],
    ["0-0001", "0-1"],
    ["00", "0-0"],
    ["007", "6-18446744073709551615"],
    ["18446744073709551615-18446744073709551615", "18446744073709551615-18446744073709551615"],
  ])("are spelt as Redis does: %s", (given, whole) => {
    expect(wholeCursor(given)).toBe(whole);
  });

  it("of a time alone are the one before all entries of that time", () => {
    expect(wholeCursor("1795422761000")).toBe("1795422760999-18446744073709551615");
    expect(wholeCursor("0")).toBe(START);
  });

  it.each([
    "",
    "-",
    "1-",
    "-1",
    "1-2-3",
    "now",
    "1.5",
    "18446744073709551616-0",
    "1-18446744073709551616",
    " 1-1",
    "1-1\n",
  ])("are not %j", (text) => {
    expect(() => wholeCursor(text)).toThrow(RangeError);
  });
});

describe("keys", () => {
  // Those of clients/python: `partition_of`, and redis-py's `key_slot`.
  it("have the partition that Python's have", () => {
    expect([partitionOf("user_2xample", 8), partitionOf("user_1", 1024), partitionOf("", 7)]).toEqual([4, 352, 0]);
  });

  it("have the slot that Redis has for them", () => {
    const keys = ["{clerk}:events", "foo", "{}{a}", "a{b}c", "{clerk:7}:events", "ä"];
    expect(keys.map(slotOf)).toEqual([8835, 12182, 13650, 3300, 11653, 13929]);
  });

  it("of partitions have the partition's number in the hash tag", () => {
    expect(split("{clerk}", 2).map(({ events }) => events)).toEqual(["{clerk:0}:events", "{clerk:1}:events"]);
    expect(split("{clerk}", 1)[0]?.session("s")).toBe("{clerk}:session:s");
  });
});
