// What a feed takes for a message, and what it does not.
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { UnreadableMessageError } from "../src/errors.js";
import { published, streamed } from "../src/update.js";

const SCHEMA = new URL("../../../docs/schema/session-message.schema.json", import.meta.url);
const { examples } = JSON.parse(readFileSync(SCHEMA, "utf8")) as { examples: [Record<string, any>] };
const [EXAMPLE] = examples;

const shared = (name: string): any =>
  JSON.parse(readFileSync(new URL(`../../conformance/${name}.json`, import.meta.url), "utf8"));
/** The client for Python has the same: tests/unit/test_updates.py. */
const MESSAGES = shared("messages") as Record<"read" | "unreadable", Record<string, unknown>[]> & {
  unreadable_without: string[];
};

/** The schema's example with other values: `{ "session.status": "new" }`. */
const changed = (values: Record<string, unknown>): string => withValues(EXAMPLE, values);
/** The message of the conformance suite, likewise. */
const made = (values: Record<string, unknown>): string => withValues(shared("message"), { cursor: "7-0", ...values });

function withValues(of: Record<string, any>, values: Record<string, unknown>): string {
  const message = structuredClone(of);
  for (const [path, value] of Object.entries(values)) {
    const [first = "", second] = path.split(".");
    if (second === undefined) message[first] = value;
    else message[first][second] = value;
  }
  return JSON.stringify(message);
}

describe("a message", () => {
  it("is read as it is", () => {
    const json = JSON.stringify(EXAMPLE);
    expect(published(json, "a key", 3, true)).toMatchObject({
      outcome: "applied",
      cursor: EXAMPLE["cursor"],
      revision: 2,
      previousStatus: "active",
      event: EXAMPLE["event"],
      session: EXAMPLE["session"],
      partition: 3,
      isSnapshot: true,
      json,
      position: null,
      isLive: false,
    });
  });

  it.each(MESSAGES.read)("of a later version is read: %j", (values) => {
    const json = made(values);
    const { event, session, cursor, revision, previousStatus } = published(json, "a key");
    const read = { event, session, cursor, revision, previous_status: previousStatus };
    expect(JSON.parse(json)).toMatchObject(read);
    const entry = streamed(made({ ...values, cursor: null }), "the stream", "8-0", "applied", 0);
    expect(entry.session).toEqual(session);
  });

  it.each(MESSAGES.unreadable)("of another kind is unreadable: %j", (values) => {
    const [field = ""] = Object.keys(values);
    const read = (): unknown => published(made(values), "the key");
    expect(read).toThrow(UnreadableMessageError);
    expect(read).toThrow(new RegExp(`^the key: ${field}`));
  });

  it.each(MESSAGES.unreadable_without)("without %s is unreadable", (field) => {
    const read = (): unknown => published(made({ [field]: undefined }), "the key");
    expect(read).toThrow(UnreadableMessageError);
    expect(read).toThrow(new RegExp(`^the key: ${field}`));
  });

  it.each(["", "{", "null", "[]", "5", '"text"'])("is not %j", (json) => {
    expect(() => published(json, "the key")).toThrow(UnreadableMessageError);
  });

  it("is live until its session expires", () => {
    const live = { "session.status": "active", "session.live": true };
    expect(published(changed({ ...live, "session.expire_at": Date.now() + 60_000 }), "").isLive).toBe(true);
    expect(published(changed({ ...live, "session.expire_at": null }), "").isLive).toBe(true);
    expect(published(changed({ ...live, "session.expire_at": Date.now() }), "").isLive).toBe(false);
  });
});

describe("an entry of the stream", () => {
  const entry = { cursor: null, revision: null, previous_status: null };

  it("gets its id as its cursor", () => {
    const update = streamed(changed(entry), "the stream 5-1", "5-1", "stale", 2);
    expect(update).toMatchObject({ cursor: "5-1", position: "5-1", outcome: "stale", revision: null, partition: 2 });
    expect(JSON.parse(update.json)).toEqual({ ...EXAMPLE, ...entry, cursor: "5-1" });
  });

  it("that has a cursor already is unreadable", () => {
    expect(() => streamed(JSON.stringify(EXAMPLE), "the stream 5-1", "5-1", "applied", 0)).toThrow(
      UnreadableMessageError,
    );
  });
});

describe("the types of a message", () => {
  it("are those of the schema: after a change of it, `npm run generate`", () => {
    const script = fileURLToPath(new URL("../scripts/generate.mjs", import.meta.url));
    const generated = execFileSync(process.execPath, [script, "--print"], { encoding: "utf8" });
    expect(readFileSync(new URL("../src/messages.ts", import.meta.url), "utf8")).toBe(generated);
  });
});
