// What another attempt can mend, in the words of servers, providers, proxies and client libraries.
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { CursorLostError, NoResponseError, PartitionsError } from "../src/errors.js";
import { explain, isRefusal, mayPass } from "../src/refusals.js";

const WORDINGS = new URL("../../conformance/refusals.json", import.meta.url);
const { refused, moving, lasting } = JSON.parse(readFileSync(WORDINGS, "utf8")) as Record<string, string[]>;

/** What a server sends, as a client library throws it. */
const reply = (words: string): Error => new Error(/^[A-Z]{2,} /.test(words) ? words : `ERR ${words}`);

describe("what a server says", () => {
  it.each(refused as string[])("may pass, and is a refusal: %s", (words) => {
    expect([mayPass(reply(words)), isRefusal(reply(words))]).toEqual([true, true]);
  });

  it.each(moving as string[])("may pass soon: %s", (words) => {
    expect([mayPass(reply(words)), isRefusal(reply(words))]).toEqual([true, false]);
  });

  it.each(lasting as string[])("stays wrong: %s", (words) => {
    expect(mayPass(reply(words))).toBe(false);
  });

  // As in Python: another attempt with the same password, or the same command, would be made for ever.
  it.each([
    "login failed",
    "unauthenticated",
    "not authenticated",
    "requires authentication",
    "password mismatch",
    "Unbalanced 'xread' list of streams: for each stream key an ID, '+', or '$' must be specified.",
    "command not supported in serverless mode",
    "not allowed: SCAN",
    "SCAN is not available",
    "HMGET is disabled",
  ])("stays wrong, in the words of a proxy: %s", (words) => {
    expect(mayPass(reply(words))).toBe(false);
  });

  it("is told without the arguments of a command that is not known", () => {
    const error = reply("unknown command 'AUTH', with args beginning with: 'secret' ");
    expect(explain(error)).toBe("unknown command 'AUTH'");
  });
});

describe("what a client library says", () => {
  it.each([
    "Connection is closed.",
    "Socket closed unexpectedly",
    "The client is closed",
    "The client is offline",
    'Reached the max retries per request limit (which is 20). Refer to "maxRetriesPerRequest" option for details.',
    "Stream isn't writeable and enableOfflineQueue options is false",
    "None of startup nodes is available",
    "All sentinels are unreachable and retry is disabled.",
    "Failed to refresh slots cache.",
    "All the root nodes are unavailable",
    "Command timed out",
  ])("may pass soon: %s", (words) => {
    expect([mayPass(new Error(words)), isRefusal(new Error(words))]).toEqual([true, false]);
  });

  it("about an address may pass, whatever words the system has for it", () => {
    const refusal = Object.assign(new Error("connect EACCES: permission denied"), { code: "EACCES" });
    const several = Object.assign(new AggregateError([], ""), { code: "ECONNREFUSED" });
    expect([mayPass(refusal), mayPass(several), explain(several)]).toEqual([true, true, "ECONNREFUSED"]);
  });

  it("about a mistake in a program stays wrong", () => {
    expect(mayPass(new TypeError("Invalid argument type"))).toBe(false);
  });
});

describe("of a feed's own errors", () => {
  it("no response, and data that is being moved, may pass", () => {
    expect([new NoResponseError(""), new PartitionsError("", true)].map(mayPass)).toEqual([true, true]);
    expect([new NoResponseError(""), new PartitionsError("", true)].map(isRefusal)).toEqual([false, true]);
  });

  it("others stay wrong", () => {
    expect([new CursorLostError("1-1", 0), new PartitionsError("")].map(mayPass)).toEqual([false, false]);
  });
});
