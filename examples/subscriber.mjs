// Says which sessions to drop, and misses none: it reads the stream, since pub/sub forgets whoever blinks.
//
//   npm install ioredis
//   REDIS_URL=redis://… node subscriber.mjs [CURSOR]    # after this cursor; from now on, if left out
//
// It waits for Redis as long as that takes, and ends with status 1 where to try again can't help.
const { REDIS_URL, REDIS_TLS_VERIFY, REDIS_KEY_PREFIX, PARTITIONS } = process.env;
const prefix = REDIS_KEY_PREFIX || "{clerk}";
const stream = `${prefix}:events`;

let said, worked;
const say = (line) => line !== said && console.error((said = line)); // not the same with each attempt
const quit = (line) => (console.error(line), process.exit(1));

const { default: Redis } = await import("ioredis").catch(() => quit("There is no ioredis here: npm install ioredis"));
if (!REDIS_URL) quit("REDIS_URL is not set: set it to redis://… or, for TLS, rediss://…");
const read = (text) => {
  const url = new URL(text);
  const { protocol, hostname, pathname, hash, username, password, searchParams } = url;
  decodeURIComponent(`${username}:${password}`); // it throws where a % is no percent-encoding
  const isPlain = ([name, value]) => /^[a-z][\w.[\]-]{0,63}$/i.test(name) && !/[,;]\w+=/.test(value);
  const isOurs = /^rediss?:$/.test(protocol) && hostname && /^\/?\d*$/.test(pathname) && !hash;
  return isOurs && [...searchParams].every(isPlain) && url;
};
const url = await Promise.resolve(REDIS_URL).then(read).catch(() => undefined);
if (!url)
  quit("REDIS_URL is not like redis://user:password@host:6379/0 or rediss://…; a password may need percent-encoding");
// Options are other clients'. ioredis would take some for its own; what says how to connect has a place before the ?.
const options = [...new Set(url.searchParams.keys())];
const meant = options.find((name) => /tls|ssl|cert|secur|verif|auth|pass|user|^db|database|virtual/i.test(name));
if (meant) quit(`REDIS_URL has the option ${meant}: leave it out; with TLS, it is rediss://user:password@host:6379/0`);
if (options.length) console.error(`REDIS_URL has options that are passed over: ${options.join(", ")}`);
url.search = "";
if (/[\s\p{C}\p{Pi}\p{Pf}'"`]/u.test(prefix))
  quit("REDIS_KEY_PREFIX has white space, a quotation mark or a control character: leave it out");
const only = "this program follows one stream: use clerk-session-feed, or `session-relay repartition --to 1`";
if (PARTITIONS && Number(PARTITIONS) !== 1) quit(`PARTITIONS=${PARTITIONS}: ${only}`);
const start = process.argv[2];
if (start && !(/^\d+-\d+$/.test(start) && start.split("-").every((number) => BigInt(number) < 2n ** 64n)))
  quit("CURSOR is not like 1795422761000-0");

// By the name or text of an error that stays: what to do about it.
const ADVICE = [
  [/certificate required/, "it wants a certificate of the client: see `cert` and `key` of Node's tls.connect"],
  [/ALTNAME/, "let REDIS_URL name the host that the certificate is for"],
  [/CERT|SIGNATURE|ISSUER/, "NODE_EXTRA_CA_CERTS=<file of its authority>; if nobody has it, REDIS_TLS_VERIFY=false"],
  [/ERR_SSL|EPROTO/, "if it speaks no TLS, let REDIS_URL begin with redis://"],
  [/WRONGPASS|NOAUTH|without any password|for 'auth'/, "correct user and password in REDIS_URL"],
  [/NOPERM/, "give the user the rights that docs/redis.md lists"],
  [/MOVED|CROSSSLOT/, "it is a cluster: use ioredis' Cluster"],
  [/DB index/, "let REDIS_URL name a database that it has, like /0"],
  [/unknown command/i, "it has to have XREAD, XREVRANGE and HMGET: see docs/redis.md for what serves"],
  [/WRONGTYPE|ERR wrong/i, "see whether REDIS_KEY_PREFIX is the relay's"],
];
const doubt = url.protocol === "rediss:" ? "if it has no TLS, use redis://" : "if it wants TLS, use rediss://";
const failed = (error) => {
  const text = (error.reason || error.message || error.code).replace(/^(read|write) |, with args.*$/gs, "");
  const [, advice] = ADVICE.find(([pattern]) => pattern.test(`${error.code} ${text}`)) ?? [];
  if (advice) quit(`Redis: ${text}: ${advice}`);
  if (!worked && /RESP type|^Protocol error/.test(text)) quit("REDIS_URL names the port of a program that is no Redis");
  say(`Redis: ${text}; trying again …${!worked && /RESET|TIMEDOUT|closed/.test(text) ? ` (${doubt})` : ""}`);
};

const redis = new Redis(url.href, {
  enableReadyCheck: false, // it takes a right, to INFO, that is not needed for anything else
  maxRetriesPerRequest: null, // however long Redis is away, a command waits, and is sent again
  socketTimeout: 30_000, // a connection that is silent for longer than a read blocks is a dead one
  reconnectOnError: (error) => /^(LOADING|UNBLOCKED) /.test(error.message) && 2, // it restarts, or a failover ends a read
  ...(url.protocol === "rediss:" && { tls: { rejectUnauthorized: REDIS_TLS_VERIFY !== "false" } }),
});
redis.on("error", failed);
redis.on("close", () => said ?? failed({ message: "the connection was closed" }));

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const ask = async (command, ...words) => {
  while (true) {
    try {
      const reply = await redis[command](...words);
      [said, worked] = [undefined, true];
      return reply;
    } catch (error) {
      if (command === "hmget" && /^NOPERM/.test(error.message)) return []; // it can do without
      failed(error);
      await sleep(1_000); // a limit of requests, say
    }
  }
};
// XREVRANGE, since it also answers "is this entry still there?"
const newest = async (from = "+", to = "-") => (await ask("xrevrange", stream, from, to, "COUNT", 1))[0]?.[0];
const field = (fields, name) => fields[fields.findIndex((key, n) => n % 2 === 0 && key === name) + 1];

const time = (id = "0-0") => Number(id.split("-")[0]);
const refusePartitions = async () => {
  const [mark] = await ask("hmget", `${prefix}:partitions`, "partitions");
  if (/^\d+>/.test(mark)) quit("The data is being moved: start again once `session-relay repartition` is done");
  if (Number(mark) > 1) quit(`The data has ${mark} partitions: ${only}`);
};

await refusePartitions();
setInterval(refusePartitions, 600_000); // ms: it may be moved
const last = await newest();
if (start && time(start) > Math.max(Date.now() + 60_000, time(last))) // clocks differ
  quit("CURSOR is in the future: leave it out to follow from now on");
let cursor = start ?? last ?? "0-0";
console.error(`following after ${cursor}${last ? "" : `; there is nothing in ${stream} yet`}`);
while (true) {
  const asked = Date.now();
  const reply = await ask("xread", "COUNT", 500, "BLOCK", 20_000, "STREAMS", stream, cursor);
  if (!reply && Date.now() - asked < 1_000) await sleep(1_000); // some servers don't wait
  if (cursor !== "0-0" && !(await newest(cursor, cursor))) {
    const lost = cursor;
    cursor = (await newest()) ?? "0-0"; // first this; then look up each session that you hold: HMGET … live state
    console.error(`the stream was trimmed past ${lost}, or Redis lost it; going on after ${cursor}`);
    continue;
  }
  for (const [id, fields] of reply?.[0][1] ?? []) {
    cursor = id;
    const { session } = JSON.parse(field(fields, "message"));
    // What came too late ("stale") has changed nothing.
    if (field(fields, "outcome") === "applied" && !session.live)
      console.log("drop", session.user_id, session.id, session.status);
  }
}
