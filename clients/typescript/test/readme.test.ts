// What the README and docs/typescript.md say is true, and their programs and examples/express.mjs run in a project of a
// user's own, beside a real Redis.
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { WebSocket } from "ws";
import * as entry from "../src/index.js";
import { memoryFeed } from "../src/testing.js";
import { freePort, RedisServer } from "./support/redis.js";
import { KEYS, signedIn } from "./support/clerk.js";
import { Project, type Program } from "./support/project.js";
import { Relay } from "./support/relay.js";

const README = readFileSync(new URL("../README.md", import.meta.url), "utf8");
const DOCUMENT = readFileSync(new URL("../../../docs/typescript.md", import.meta.url), "utf8");
const programs = (text: string): string[] =>
  [...text.matchAll(/^```js\n(.*?)^```$/gms)].map(([, code]) => code as string);
const [CONSUMER] = programs(README) as [string];
const [MIRROR, SOCKETS, TEST] = programs(DOCUMENT) as [string, string, string];
/** What other programs go on from: the consumer, up to where it has made the feed. */
const BEGINNING = CONSUMER.slice(0, CONSUMER.indexOf("for await"));
const EXAMPLE = readFileSync(new URL("../../../examples/express.mjs", import.meta.url), "utf8");

let server: RedisServer;
let relay: Relay;
let project: Project;
beforeAll(async () => {
  const linked = ["express", "@clerk/express", "ws"].map((name): [string, string] => [name, name]);
  server = await RedisServer.start();
  relay = new Relay(server.port);
  project = await Project.make({ ...Object.fromEntries(linked), redis: "redis6" });
});
beforeEach(async () => {
  await relay.redis.flushall();
  relay.revisions.clear();
});
afterAll(async () => {
  relay.close();
  await Promise.all([project.remove(), server.stop()]);
});

const eventually = <Result>(check: () => Promise<Result>) => vi.waitFor(check, { timeout: 30_000, interval: 100 });
const CLERK = { CLERK_SECRET_KEY: KEYS.secretKey, CLERK_PUBLISHABLE_KEY: KEYS.publishableKey };
const ORIGIN = "https://app.example.com";

describe("examples/express.mjs", () => {
  const settings = () => ({
    ...CLERK,
    REDIS_URL: server.url,
    CLERK_JWT_KEY: KEYS.jwtKey,
    CLERK_AUTHORIZED_PARTIES: `${ORIGIN},https://other.example.com`,
    PORT: "0",
  });
  let program: Program;
  let url: string;
  const me = (sessionId: string, azp = ORIGIN) => fetch(url, { headers: signedIn(sessionId, { azp }) });
  const status = async (sessionId: string) => (await me(sessionId)).status;

  beforeAll(() => project.write("express.mjs", EXAMPLE));
  beforeEach(async () => {
    program = project.start("express.mjs", settings());
    [url] = (await program.find(/http:\S+/)) as [string];
  });
  afterEach(() => program.stop("SIGKILL"));

  it("lets a user in until the session ends", async () => {
    await relay.apply({ id: "sess_1" });
    const response = await me("sess_1");
    expect([response.status, await response.json()]).toEqual([200, { session_id: "sess_1" }]);
    await relay.apply({ id: "sess_1", status: "revoked" });
    const refused = await eventually(async () => {
      const response = await me("sess_1");
      expect(response.status).toBe(401);
      return response;
    });
    expect(await refused.json()).toMatchObject({ code: "session_not_live" });
  });

  it("refuses who is not signed in, and who has a token for another site", async () => {
    await relay.apply({ id: "sess_1" });
    expect((await fetch(url)).status).toBe(401);
    expect((await me("sess_1", "https://evil.example.com")).status).toBe(401);
    expect((await me("sess_1")).status).toBe(200);
  });

  it("asks Redis nothing once it has read all", async () => {
    await relay.apply({ id: "sess_1" });
    expect(await status("sess_1")).toBe(200);
    const asked = async () => /cmdstat_hmget:calls=(\d+)/.exec(await relay.redis.info("commandstats"))?.[1];
    await eventually(async () => {
      const before = await asked();
      expect(await status("sess_1")).toBe(200);
      expect(await asked()).toBe(before);
    });
  });

  it("refuses with 503 while Redis is away, and lets in again after that", async () => {
    await relay.apply({ id: "sess_1" });
    expect(await status("sess_1")).toBe(200);
    await server.kill();
    await eventually(async () => expect(await status("sess_1")).toBe(503));
    await server.start();
    await eventually(async () => expect(await status("sess_1")).toBe(200));
  });

  it.each(["SIGINT", "SIGTERM"] as const)("ends at %s without a word", async (signal) => {
    expect(await program.stop(signal)).toBe(0);
    expect(program.printed.stderr).toBe("");
  });
});

it("examples/express.mjs says in one line which setting is missing", async () => {
  project.write("express.mjs", EXAMPLE);
  const program = project.start("express.mjs", { ...CLERK, REDIS_URL: `redis://127.0.0.1:${await freePort()}` });
  expect(await program.ended).toBe(1);
  expect(program.printed.stderr).toMatch(/^CLERK_AUTHORIZED_PARTIES: is missing;.*\n$/);
});

const methods = () => Object.getOwnPropertyNames(entry.SessionFeed.prototype).filter((name) => name !== "constructor");

describe("README.md", () => {
  it("has a consumer that prints each state, then each change", async () => {
    await relay.apply({ id: "sess_1" });
    project.write("consumer.mjs", CONSUMER);
    const program = project.start("consumer.mjs", { REDIS_URL: server.url });
    await program.find(/^user_1 sess_1 active \(live\)\n/);
    await relay.apply({ id: "sess_1", status: "ended" });
    await program.find(/^user_1 sess_1 ended \(not live\)\n/m);
    expect(program.printed.stderr).toBe("");
  });

  it("lists every method of the feed", () => {
    expect(methods().filter((name) => !README.includes(`\`${name}(`))).toEqual([]);
  });
});

describe("docs/typescript.md", () => {
  it("has a server that answers from memory", async () => {
    await relay.apply({ id: "sess_1" });
    project.write("server.mjs", BEGINNING + MIRROR);
    const port = await freePort();
    const environment = { ...CLERK, CLERK_JWT_KEY: KEYS.jwtKey, REDIS_URL: server.url, PORT: `${port}` };
    project.start("server.mjs", environment);
    const me = () => fetch(`http://127.0.0.1:${port}/me`, { headers: signedIn("sess_1") });
    await eventually(async () => expect(await (await me()).json()).toEqual({ user_id: "user_1" }));
    await relay.apply({ id: "sess_1", status: "ended" });
    await eventually(async () => expect((await me()).status).toBe(401));
  });

  it("has a server that closes the WebSocket of a session that ends", async () => {
    await relay.apply({ id: "sess_1" });
    project.write("sockets.mjs", BEGINNING + SOCKETS);
    const port = await freePort();
    const environment = { ...CLERK, CLERK_JWT_KEY: KEYS.jwtKey, REDIS_URL: server.url, PORT: `${port}` };
    const program = project.start("sockets.mjs", environment);
    const connected = (sessionId: string | undefined) => {
      const token = signedIn(sessionId)["authorization"]?.replace("Bearer ", "") ?? "";
      return new WebSocket(`ws://127.0.0.1:${port}/?token=${token}`);
    };
    const client = await eventually(async () => {
      const socket = connected("sess_1");
      await once(socket, "open");
      return socket;
    });
    client.send("hello");
    expect(String((await once(client, "message"))[0])).toBe("you said hello");
    const closed = once(client, "close");
    await relay.apply({ id: "sess_1", status: "ended" });
    expect((await closed)[0]).toBe(4401);
    expect((await once(connected("sess_1"), "close"))[0]).toBe(4401);
    expect((await once(connected(undefined), "close"))[0]).toBe(4401);
    const [refused] = await once(new WebSocket(`ws://127.0.0.1:${port}/?token=none`), "error");
    expect(refused.message).toContain("401");
    expect(program.printed).toEqual({ stdout: "", stderr: "" });
  });

  it("has a test of a consumer that passes, without Redis", async () => {
    project.write("consumer.test.mjs", TEST);
    const program = project.start("consumer.test.mjs");
    expect(await program.ended).toBe(0);
    expect(program.printed.stdout).toMatch(/pass 1$/m);
  });

  it("lists every method of the feed", () => {
    expect(methods().filter((name) => !DOCUMENT.includes(`\`${name}(`))).toEqual([]);
  });

  it("lists all that a mirror has", async () => {
    const { feed } = memoryFeed();
    const names = Object.keys(feed.mirror());
    await feed.close();
    expect(names.filter((name) => !new RegExp(`^\\| .*\`${name}[\`(].*\\|`, "m").test(DOCUMENT))).toEqual([]);
  });

  it("lists every error", () => {
    const errors = Object.keys(entry).filter((name) => name.endsWith("Error"));
    expect(errors.filter((name) => !DOCUMENT.includes(`\`${name}\``))).toEqual([]);
  });

  it("names every entry point, and no other", async () => {
    const { default: manifest } = await import("../package.json", { with: { type: "json" } });
    const paths = Object.keys(manifest.exports).map((path) => path.replace(/^\./, manifest.name));
    const named = new Set(DOCUMENT.match(/\bclerk-session-feed\/\w+/g));
    expect([...named].filter((path) => !paths.includes(path))).toEqual([]);
    expect(paths.filter((path) => /\/\w+$/.test(path) && !named.has(path))).toEqual([]);
  });
});
