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

/** The schema's example with other values: `{ "session.status": "new" }`. */
function changed(values: Record<string, unknown>): string {
  const message = structuredClone(EXAMPLE);
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

  it.each([
    { "event.source": "of a later version" },
    { "event.type": "user.renamed" },
    { "session.status": "of a later version" },
    { "event.later": { key: [1] } },
    { later: true },
    { "session.later": null },
    { previous_status: null },
    { "session.updated_at": null },
  ])("of a later version is read: %j", (values) => {
    expect(JSON.parse(published(changed(values), "a key").json)).toMatchObject(JSON.parse(changed(values)));
  });

  it.each([
    ["schema_version", 2],
    ["schema_version", undefined],
    ["cursor", null],
    ["cursor", "1"],
    ["revision", 0],
    ["revision", null],
    ["previous_status", 1],
    ["event", null],
    ["event.source", null],
    ["event.type", "t".repeat(129)],
    ["event.id", "a b"],
    ["event.occurred_at", "now"],
    ["session", undefined],
    ["session.id", ""],
    ["session.user_id", 5],
    ["session.status", null],
    ["session.live", "true"],
    ["session.expire_at", "later"],
    ["session.expire_at", 1.5],
    ["session.tasks", null],
  ])("without a usable %s is unreadable: %j", (field, value) => {
    const read = (): unknown => published(changed({ [field]: value }), "the key");
    expect(read).toThrow(UnreadableMessageError);
    expect(read).toThrow(new RegExp(`^the key: ${field.replace(/^(event|session)$/, "$1\\.")}`));
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
