// Says which sessions to drop, and misses none: it reads the stream, since pub/sub forgets whoever blinks.
//
//   npm install ioredis
//   REDIS_URL=redis://… node subscriber.mjs [CURSOR]    # after this cursor; from now on, if left out
import Redis from "ioredis";

const { REDIS_URL, REDIS_TLS_VERIFY, REDIS_KEY_PREFIX = "{clerk}" } = process.env;
const stream = `${REDIS_KEY_PREFIX}:events`;
const redis = new Redis(REDIS_URL, {
  enableReadyCheck: false, // it takes a right, to INFO, that is not needed for anything else
  maxRetriesPerRequest: null, // however long Redis is away, a command waits, and is sent again
  socketTimeout: 15_000, // a connection that is silent for longer than a read blocks is a dead one
  reconnectOnError: (error) => /^(LOADING|UNBLOCKED) /.test(error.message) && 2, // it restarts, or a failover ends a read
  ...(REDIS_URL.startsWith("rediss:") && { tls: { rejectUnauthorized: REDIS_TLS_VERIFY !== "false" } }),
});
redis.on("error", (error) => console.error(error.message));

// XREVRANGE, since it also answers "is this entry still there?"
const newest = async (from = "+", to = "-") => (await redis.xrevrange(stream, from, to, "COUNT", 1))[0]?.[0];
const field = (fields, name) => fields[fields.findIndex((key, n) => n % 2 === 0 && key === name) + 1];

let cursor = process.argv[2] ?? (await newest()) ?? "0-0";
console.error(`following after ${cursor}`);
while (true) {
  const reply = await redis.xread("COUNT", 500, "BLOCK", 5_000, "STREAMS", stream, cursor);
  if (cursor !== "0-0" && !(await newest(cursor, cursor))) {
    const lost = cursor;
    cursor = (await newest()) ?? "0-0"; // first this; then look up each session that you hold: HMGET … live state
    console.error(`the stream was trimmed past ${lost}; going on after ${cursor}`);
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
