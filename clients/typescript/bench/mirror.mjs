// What a mirror of a million sessions costs, and how fast it is: `npm run build && node bench/mirror.mjs`. docs/mirror.md
// has it. `--sessions 100000` measures fewer; `--library ioredis6` another client.
//
// Each figure is taken in a process of its own, so that memory is the mirror's alone. What is compared with each other
// is taken in the same process, in turns. Redis, and what sends it events, have processes of their own.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { SessionFeed } from "../dist/index.js";

const { values: given } = parseArgs({
  options: {
    sessions: { type: "string", default: "1000000" },
    library: { type: "string", default: "redis6" },
    part: { type: "string" },
    port: { type: "string" },
  },
});
const count = Number(given.sessions);

/** Sessions that are looked up in one measurement. */
const ASKED = Math.min(200_000, count);
const ROUNDS = 7;
const IS_LIVE_CALLS = 3000;
/** Sessions that Redis makes up in one script. */
const FILLED_AT_ONCE = 2000;
/** Events a second, for how many seconds; of so many, one ends a session. */
const RATE = 1000;
const SECONDS = 20;
const ENDED_EVERY = 20;
/** The characters of a session's message, as the relay writes it, about. */
const STATE = 1000;

// ARGV: the first and last number, when the sessions end, the state of each.
const FILL = `
for number = ARGV[1], ARGV[2] do
  local id = string.format('%027d', number)
  redis.call('HSET', '{clerk}:session:sess_' .. id, 'state', ARGV[4], 'status', 'active', 'live', '1', 'user_id',
    'user_' .. id, 'revision', '1', 'cursor', '1-1', '_expire_at', ARGV[3])
  redis.call('ZADD', '{clerk}:user:user_' .. id .. ':sessions', ARGV[3], 'sess_' .. id)
end`;

const named = (number) => `sess_${String(number).padStart(27, "0")}`;
/** The same as a new text, as it comes from a token: V8 knows nothing about it yet. */
const asked = (number) => Buffer.from(named(number), "latin1").toString("latin1");
const median = (numbers) => numbers.toSorted((a, b) => a - b)[numbers.length >> 1];
const seconds = () => Number(process.hrtime.bigint()) / 1e9; // the same clock in all processes

async function connect(port, library = given.library) {
  const redis = await import(library);
  if (!library.startsWith("redis")) return new redis.Redis({ host: "127.0.0.1", port });
  return redis.createClient({ url: `redis://127.0.0.1:${port}` }).connect();
}
const disconnect = (client) => (client.destroy ?? client.disconnect).call(client);

/** Bytes that V8 uses, and what it does not count as its own. */
async function memory() {
  for (let turn = 0; turn < 3; turn++) {
    gc();
    await sleep(50);
  }
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external;
}

/** Bytes of a Map of ids, each. */
async function map() {
  const before = await memory();
  const ids = new Map();
  for (let number = 1; number <= count; number++) ids.set(asked(number), true);
  return { map: ((await memory()) - before) / ids.size };
}

/** A mirror: until it is ready, its memory, lookups, and how soon a session is refused. */
async function mirror() {
  const client = await connect(given.port);
  const feed = new SessionFeed(client);
  await feed.status(named(1));
  const before = await memory();
  const [begun, cpu] = [seconds(), process.cpuUsage()];
  const mirror = feed.mirror();
  await mirror.ready();
  const ready = seconds() - begun;
  const { user, system } = process.cpuUsage(cpu);
  const bytes = ((await memory()) - before) / mirror.size;
  const figures = { ready, readyCpu: (user + system) / 1e6, bytes, sessions: mirror.size };
  Object.assign(figures, await lookups(feed, mirror), await refusals(mirror));
  await feed.close();
  disconnect(client);
  return figures;
}

/** Nanoseconds, in random order: a Map, the mirror and `isLive`, in turns. */
async function lookups(feed, mirror) {
  const ids = new Map();
  for (let number = 1; number <= count; number++) ids.set(asked(number), true);
  const numbers = Array.from({ length: ASKED }, () => 1 + Math.floor(Math.random() * count));
  const taken = { lookup: [], status: [], isLive: [] };
  let found = 0;
  const measure = (name, given, ask) => {
    const begun = process.hrtime.bigint();
    for (const id of given) if (ask(id)) found++;
    taken[name].push(Number(process.hrtime.bigint() - begun) / given.length);
  };
  gc();
  for (let round = 0; round < ROUNDS; round++) {
    measure("lookup", numbers.map(asked), (id) => ids.get(id));
    while (mirror.age >= 4000) await sleep(10); // it had no time to look
    measure("status", numbers.map(asked), (id) => mirror.status(id) === "live");
    const few = numbers.slice(0, IS_LIVE_CALLS).map(asked);
    const begun = process.hrtime.bigint();
    for (const id of few) if (await feed.isLive(id)) found++;
    taken.isLive.push(Number(process.hrtime.bigint() - begun) / few.length);
  }
  if (found !== ROUNDS * (2 * ASKED + Math.min(IS_LIVE_CALLS, ASKED))) throw new Error("not all of them are live");
  return Object.fromEntries(Object.entries(taken).map(([name, each]) => [name, median(each)]));
}

/** Milliseconds from when Redis is told that a session ended, while events pass, until the mirror refuses it. */
async function refusals(mirror) {
  const traffic = start("traffic");
  const ended = new Map();
  const taken = [];
  let oldest = 0;
  createInterface({ input: traffic.stdout }).on("line", (line) => {
    const [id, at] = line.split(" ");
    ended.set(id, Number(at));
  });
  let isOver = false;
  void once(traffic, "close").then(() => (isOver = true));
  const [begun, cpu] = [seconds(), process.cpuUsage()];
  while (!isOver || ended.size) {
    oldest = Math.max(oldest, mirror.age);
    for (const [id, at] of ended) {
      if (mirror.status(id) !== "ended") continue;
      taken.push((seconds() - at) * 1000);
      ended.delete(id);
    }
    await sleep(1);
  }
  const { user, system } = process.cpuUsage(cpu);
  taken.sort((a, b) => a - b);
  const at = (part) => taken[Math.floor((taken.length - 1) * part)];
  const load = (user + system) / 1e6 / (seconds() - begun);
  return { refused: taken.length, p50: at(0.5), p99: at(0.99), longest: at(1), oldest, load };
}

/** Sends events, as the relay's script leaves them; prints which sessions ended, and when Redis was told. */
async function traffic() {
  const client = await connect(given.port, "ioredis6");
  const session = {
    object: "session",
    client_id: "client_1",
    actor: null,
    last_active_organization_id: null,
    latest_activity: null,
    tasks: [],
  };
  const times = { expire_at: Date.now() + 6e8, abandon_at: null, updated_at: 1, created_at: 1, last_active_at: 1 };
  const begun = seconds();
  const sent = [];
  for (let number = 1; number <= RATE * SECONDS; number++) {
    await sleep(Math.max(0, (begun + number / RATE - seconds()) * 1000));
    const id = ((number * 7919) % count) + 1;
    const ends = number % ENDED_EVERY === 0;
    const user_id = named(id).replace("sess", "user");
    const state = { ...session, id: named(id), user_id, status: ends ? "ended" : "active", live: !ends, ...times };
    const event = {
      id: `msg_${number}`,
      type: "session.updated",
      occurred_at: 1,
      instance_id: "ins_1",
      source: "clerk",
    };
    const message = JSON.stringify({
      schema_version: 1,
      cursor: null,
      revision: 2,
      previous_status: "active",
      event,
      session: state,
    });
    const fields = ["outcome", "applied", "session_id", named(id), "user_id", user_id, "message", message];
    const at = seconds();
    const command = client.xadd("{clerk}:events", "MAXLEN", "~", 5000, "*", ...fields);
    sent.push(command.then(() => ends && process.stdout.write(`${named(id)} ${at}\n`)));
  }
  await Promise.all(sent);
  disconnect(client);
  return undefined;
}

/** Runs a part in a process of its own. */
function start(part, port = given.port) {
  const options = ["--part", part, "--port", port, "--sessions", String(count), "--library", given.library];
  return spawn(process.execPath, ["--expose-gc", fileURLToPath(import.meta.url), ...options], {
    stdio: ["ignore", "pipe", "inherit"],
  });
}

async function measured(part, port) {
  process.stderr.write(`${part} …\n`);
  const child = start(part, port);
  let said = "";
  child.stdout.on("data", (text) => (said += text));
  const [status] = await once(child, "close");
  if (status !== 0) throw new Error(`${part} failed`);
  return JSON.parse(said);
}

/** A redis-server with the sessions, as long as `work` takes. */
async function withSessions(work) {
  const listening = createServer().listen(0, "127.0.0.1");
  await once(listening, "listening");
  const port = String(listening.address().port);
  listening.close();
  await once(listening, "close");
  const folder = mkdtempSync(join(tmpdir(), "clerk-session-feed-"));
  const options = ["--port", port, "--bind", "127.0.0.1", "--dir", folder, "--save", ""];
  const server = spawn(process.env.REDIS_SERVER ?? "redis-server", options, { stdio: "ignore" });
  try {
    const client = await connect(port, "ioredis6");
    process.stderr.write(`${count.toLocaleString("en")} sessions …\n`);
    for (let first = 1; first <= count; first += FILLED_AT_ONCE) {
      const last = Math.min(first + FILLED_AT_ONCE - 1, count);
      await client.eval(FILL, 0, first, last, Date.now() + 6e8, "x".repeat(STATE));
    }
    await client.xadd("{clerk}:events", "*", "outcome", "stale");
    client.disconnect();
    return await work(port);
  } finally {
    server.kill("SIGKILL");
    rmSync(folder, { recursive: true, force: true });
  }
}

function* rows(of) {
  const number = (value, places = 0) =>
    value.toLocaleString("en", { maximumFractionDigits: places, minimumFractionDigits: places });
  yield ["open sessions", number(of.sessions), given.library];
  yield ["lookup in a Map of the ids", `${number(of.lookup)} ns`, ""];
  yield [
    "mirror.status()",
    `${number(of.status)} ns`,
    `${number(of.status / of.lookup, 1)} times the Map (at most 10)`,
  ];
  const times = number(of.isLive / of.status);
  yield ["feed.isLive() over loopback", `${number(of.isLive / 1000)} µs`, `${times} times the mirror (at least 50)`];
  yield ["memory of a Map of the ids, a session", `${number(of.map)} bytes`, "heap and external"];
  yield ["memory of the mirror, a session", `${number(of.bytes)} bytes`, "at most 200"];
  yield ["ready", `${number(of.ready, 1)} s`, `${number(of.readyCpu, 1)} s of CPU time (at most 30)`];
  yield ["refused after it ended, median", `${number(of.p50)} ms`, `${number(of.refused)} sessions`];
  yield ["refused after it ended, p99", `${number(of.p99)} ms`, `longest ${number(of.longest)} ms (at most 250)`];
  yield ["age meanwhile, at most", `${number(of.oldest)} ms`, ""];
  yield ["CPU of the process, 1,000 events a second", `${number(of.load * 100)} %`, "with what asks it meanwhile"];
}

const PARTS = { map, mirror, traffic };
if (given.part) {
  const figures = await PARTS[given.part]();
  if (figures) console.log(JSON.stringify(figures));
} else {
  const figures = await withSessions(async (port) => ({
    ...(await measured("map", port)),
    ...(await measured("mirror", port)),
  }));
  console.log(
    ["| | | |", "| --- | ---: | --- |", ...[...rows(figures)].map((row) => `| ${row.join(" | ")} |`)].join("\n"),
  );
}
