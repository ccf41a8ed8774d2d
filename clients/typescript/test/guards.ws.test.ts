// The helper for WebSockets over a feed that the tests drive, with sockets of `ws` and with plain objects.
import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { beforeEach, describe, expect, it, onTestFinished, vi } from "vitest";
import { WebSocket, WebSocketServer } from "ws";
import { CursorLostError, FeedClosedError } from "../src/errors.js";
import { SessionFeed, type FollowOptions } from "../src/feed.js";
import { sessionSockets, type SocketOptions } from "../src/guards/ws.js";
import type { LiveStatus } from "../src/reads.js";
import type { SessionUpdate } from "../src/update.js";
import { LIBRARIES, type Library } from "./support/clients.js";
import { RedisServer } from "./support/redis.js";
import { Relay } from "./support/relay.js";

/** A feed whose followers get what the test tells it. */
class Feed {
  readonly statuses = new Map<string, LiveStatus>();
  readonly calls: string[] = [];
  readonly followed: FollowOptions[] = [];
  statusError: Error | undefined;
  nowError: Error | undefined;
  #news: (string | Error | null)[] = [];
  #wake = (): void => undefined;

  async status(sessionId: string) {
    this.calls.push(`status ${sessionId}`);
    if (this.statusError) throw this.statusError;
    return this.statuses.get(sessionId) ?? "unknown";
  }

  async now() {
    this.calls.push("now");
    if (this.nowError) throw this.nowError;
    return { 0: `${this.calls.length}-0` };
  }

  async *follow(options: FollowOptions): AsyncGenerator<SessionUpdate, void> {
    this.followed.push(options);
    options.signal?.addEventListener("abort", () => this.tell(null));
    while (true) {
      const next = this.#news.shift();
      if (next === null) return;
      if (next instanceof Error) throw next;
      if (next === undefined) await new Promise<void>((resolve) => (this.#wake = resolve));
      else yield { session: { id: next }, isLive: this.statuses.get(next) === "live" } as SessionUpdate;
    }
  }

  /** What follow yields (an update of a session), throws, or ends with. */
  tell(news: string | Error | null): void {
    this.#news.push(news);
    this.#wake();
  }

  set(sessionId: string, status: LiveStatus): void {
    this.statuses.set(sessionId, status);
    this.tell(sessionId);
  }
}

let feed: Feed;
beforeEach(() => {
  feed = new Feed();
  feed.statuses.set("sess_live", "live").set("sess_ended", "ended");
});

const socketsOf = (options?: SocketOptions) => {
  const sockets = sessionSockets(feed, options);
  onTestFinished(sockets.close);
  return sockets;
};
const eventually = (check: () => void) => vi.waitFor(check, { timeout: 30_000 });
const plain = () => ({ close: vi.fn<(code: number, reason: string) => void>() });
const closings = (socket: ReturnType<typeof plain>) => socket.close.mock.calls.map(([code]) => code);

describe("a socket that is added", () => {
  it("stays open if its session is live", async () => {
    const socket = plain();
    expect(await socketsOf().add(socket, "sess_live")).toBe(true);
    expect(closings(socket)).toEqual([]);
  });

  it("is closed with 4401 if its session has ended", async () => {
    const socket = plain();
    expect(await socketsOf().add(socket, "sess_ended")).toBe(false);
    expect(socket.close.mock.calls).toEqual([[4401, "the session is not live"]]);
  });

  it("is closed with another code, if that is asked for", async () => {
    const socket = plain();
    await socketsOf({ code: 4001 }).add(socket, "sess_ended");
    expect(closings(socket)).toEqual([4001]);
  });

  it("stays open if its session is unknown, since the token was verified", async () => {
    expect(await socketsOf().add(plain(), "sess_new")).toBe(true);
  });

  it("is closed if its session is unknown, without trustToken", async () => {
    const socket = plain();
    expect(await socketsOf({ trustToken: false }).add(socket, "sess_new")).toBe(false);
    expect(closings(socket)).toEqual([4401]);
  });

  it.each([undefined, null, ""])("is closed if its token names no session, but %j", async (sessionId) => {
    const socket = plain();
    expect(await socketsOf().add(socket, sessionId)).toBe(false);
    expect(closings(socket)).toEqual([4401]);
  });

  it("is checked after the place is known from which on the feed is followed", async () => {
    const sockets = socketsOf();
    await sockets.add(plain(), "sess_live");
    await sockets.add(plain(), "sess_live");
    expect(feed.calls).toEqual(["now", "status sess_live", "status sess_live"]);
    expect(feed.followed.map(({ after }) => after)).toEqual([{ 0: "1-0" }]);
  });

  it("is closed with 1013 if Redis can't tell, and the error is told", async () => {
    feed.statusError = new Error("connect ECONNREFUSED");
    const [socket, onError] = [plain(), vi.fn()];
    expect(await socketsOf({ onError }).add(socket, "sess_live")).toBe(false);
    expect(closings(socket)).toEqual([1013]);
    expect(onError.mock.calls).toEqual([[feed.statusError]]);
  });

  it("stays open after an outage, though the feed could not be followed before", async () => {
    const sockets = socketsOf({ onError: () => undefined });
    feed.nowError = new Error("connect ECONNREFUSED");
    expect(await sockets.add(plain(), "sess_live")).toBe(false);
    feed.nowError = undefined;
    expect(await sockets.add(plain(), "sess_live")).toBe(true);
  });

  it("is not listed if it is closed already", async () => {
    expect(await socketsOf().add({ ...plain(), readyState: 3 }, "sess_live")).toBe(false);
    expect(feed.calls).toEqual([]);
  });

  it("is not read before the check, and read again after it", async () => {
    const said: string[] = [];
    feed.status = async () => (said.push("checked"), "live");
    const socket = { ...plain(), pause: () => said.push("paused"), resume: () => said.push("resumed") };
    await socketsOf().add(socket, "sess_live");
    expect(said).toEqual(["paused", "checked", "resumed"]);
  });
});

describe("the end of a session", () => {
  it("closes all of its sockets, and no other", async () => {
    const [one, two, other] = [plain(), plain(), plain()];
    feed.statuses.set("sess_other", "live");
    const sockets = socketsOf();
    await sockets.add(one, "sess_live");
    await sockets.add(two, "sess_live");
    await sockets.add(other, "sess_other");
    feed.set("sess_live", "ended");
    await eventually(() => expect([one, two].map(closings)).toEqual([[4401], [4401]]));
    expect(closings(other)).toEqual([]);
  });

  it("is no other update of it: the session may get a new organization, say", async () => {
    const [socket, other] = [plain(), plain()];
    feed.statuses.set("sess_other", "live");
    const sockets = socketsOf();
    await sockets.add(socket, "sess_live");
    await sockets.add(other, "sess_other");
    feed.set("sess_live", "live");
    feed.set("sess_other", "ended");
    await eventually(() => expect(closings(other)).toEqual([4401]));
    expect(closings(socket)).toEqual([]);
  });

  it("closes the others, though a socket throws", async () => {
    const [bad, good] = [plain(), plain()];
    bad.close.mockImplementation(() => {
      throw new Error("it is closed");
    });
    const sockets = socketsOf();
    await sockets.add(bad, "sess_live");
    await sockets.add(good, "sess_live");
    feed.set("sess_live", "ended");
    await eventually(() => expect(closings(good)).toEqual([4401]));
  });

  it("closes a socket that is being checked", async () => {
    const [first, second] = [plain(), plain()];
    const sockets = socketsOf();
    await sockets.add(first, "sess_live");
    let respond = (_: LiveStatus): void => undefined;
    feed.status = () => new Promise((resolve) => (respond = resolve));
    const added = sockets.add(second, "sess_live");
    feed.set("sess_live", "ended");
    await eventually(() => expect(closings(second)).toEqual([4401]));
    respond("live"); // Redis said so just before
    expect(await added).toBe(false);
  });

  it("leaves a socket open that was deleted", async () => {
    const [kept, deleted] = [plain(), plain()];
    const sockets = socketsOf();
    await sockets.add(kept, "sess_live");
    await sockets.add(deleted, "sess_live");
    sockets.delete(deleted);
    feed.set("sess_live", "ended");
    await eventually(() => expect(closings(kept)).toEqual([4401]));
    expect(closings(deleted)).toEqual([]);
  });

  it("closes a socket that moved to that session", async () => {
    const [socket, other] = [plain(), plain()];
    feed.statuses.set("sess_next", "live");
    const sockets = socketsOf();
    await sockets.add(socket, "sess_live");
    await sockets.add(other, "sess_live");
    await sockets.add(socket, "sess_next");
    feed.set("sess_live", "ended");
    await eventually(() => expect(closings(other)).toEqual([4401]));
    expect(closings(socket)).toEqual([]);
    feed.set("sess_next", "ended");
    await eventually(() => expect(closings(socket)).toEqual([4401]));
  });

  it("listens to a socket once, however often that moves", async () => {
    const socket = { ...plain(), addEventListener: vi.fn() };
    const sockets = socketsOf();
    await sockets.add(socket, "sess_live");
    sockets.delete(socket);
    await sockets.add(socket, "sess_live");
    await sockets.add(socket, "sess_next");
    expect(socket.addEventListener).toHaveBeenCalledTimes(1);
  });
});

describe("where updates were lost", () => {
  it("closes the sockets of sessions that ended meanwhile, and goes on", async () => {
    const [ended, live] = [plain(), plain()];
    feed.statuses.set("sess_other", "live");
    const sockets = socketsOf();
    await sockets.add(ended, "sess_live");
    await sockets.add(live, "sess_other");
    feed.statuses.set("sess_live", "ended");
    feed.tell(new CursorLostError("1-0", 0));
    await eventually(() => expect(closings(ended)).toEqual([4401]));
    expect(closings(live)).toEqual([]);
    feed.set("sess_other", "ended");
    await eventually(() => expect(closings(live)).toEqual([4401]));
  });

  it("lets clients come again with a fresh token, if nothing is stored of their session any more", async () => {
    const socket = plain();
    await socketsOf().add(socket, "sess_live");
    feed.statuses.clear();
    feed.tell(new CursorLostError("1-0", 0));
    await eventually(() => expect(closings(socket)).toEqual([1013]));
  });

  it("looks no more than once a second, though the place is lost at once, again and again", async () => {
    vi.useFakeTimers();
    onTestFinished(() => void vi.useRealTimers());
    const follow = vi.spyOn(feed, "follow").mockImplementation(async function* () {
      if (follow.mock.calls.length < 100) throw new CursorLostError("0-1", 0);
    });
    await socketsOf().add(plain(), "sess_live");
    await vi.advanceTimersByTimeAsync(4500);
    expect(follow).toHaveBeenCalledTimes(5);
  });
});

describe("where the feed can't be followed", () => {
  it("closes all sockets with 1013, tells why, and follows it again for the next socket", async () => {
    const [socket, next, onError] = [plain(), plain(), vi.fn()];
    const sockets = socketsOf({ onError });
    await sockets.add(socket, "sess_live");
    const error = new Error("NOPERM");
    feed.tell(error);
    await eventually(() => expect(closings(socket)).toEqual([1013]));
    expect(onError.mock.calls).toEqual([[error]]);
    expect(await sockets.add(next, "sess_live")).toBe(true);
    feed.set("sess_live", "ended");
    await eventually(() => expect(closings(next)).toEqual([4401]));
  });

  it("closes all sockets with 1001 if the feed is closed, and lets no other stay", async () => {
    const [socket, next] = [plain(), plain()];
    const sockets = socketsOf({ onError: () => undefined });
    await sockets.add(socket, "sess_live");
    feed.statusError = feed.nowError = new FeedClosedError();
    feed.tell(null);
    await eventually(() => expect(closings(socket)).toEqual([1001]));
    expect(await sockets.add(next, "sess_live")).toBe(false);
  });
});

it("close() ends the iterator and closes all sockets with 1001, also those that come later", async () => {
  const [socket, next] = [plain(), plain()];
  const sockets = socketsOf();
  await sockets.add(socket, "sess_live");
  sockets.close();
  expect(closings(socket)).toEqual([1001]);
  expect(feed.followed.map(({ signal }) => signal?.aborted)).toEqual([true]);
  await new Promise(setImmediate); // the iterator has ended
  expect(await sockets.add(next, "sess_live")).toBe(false);
  expect(closings(next)).toEqual([1001]);
});

it("over a real Redis: sockets stay open while it restarts, and close when their session ends after that", async () => {
  const server = await RedisServer.start();
  const relay = new Relay(server.port);
  const { client, close } = await (LIBRARIES.at(-1) as Library).server(server.port);
  const real = new SessionFeed(client);
  onTestFinished(async () => {
    await real.close();
    close();
    relay.close();
    await server.stop();
  });
  await relay.apply({ id: "sess_1" });
  const socket = plain();
  let attempts = 0;
  const sockets = sessionSockets(real, { onReconnect: () => void attempts++ });
  expect(await sockets.add(socket, "sess_1", "user_1")).toBe(true);
  await server.kill();
  await eventually(() => expect(attempts).toBeGreaterThan(1));
  await server.start();
  expect(closings(socket)).toEqual([]);
  await relay.apply({ id: "sess_1", status: "revoked" });
  await eventually(() => expect(closings(socket)).toEqual([4401]));
  sockets.close();
});

describe("with ws", () => {
  /** A server that adds each socket to the session that its path names, and says when a socket may be used. */
  const served = async (): Promise<{ url: string; server: WebSocketServer; received: string[] }> => {
    const options = { host: "127.0.0.1", port: 0, closeTimeout: 600_000 }; // ms, in place of its 30 s
    const server = new WebSocketServer(options);
    const sockets = socketsOf();
    const received: string[] = [];
    server.on("connection", async (socket, request) => {
      if (!(await sockets.add(socket, (request.url ?? "").slice(1)))) return;
      socket.on("message", (data) => void received.push(String(data)));
      socket.send("in");
    });
    onTestFinished(() => {
      for (const socket of server.clients) socket.terminate();
      server.close();
    });
    await once(server, "listening");
    return { url: `ws://127.0.0.1:${(server.address() as AddressInfo).port}/`, server, received };
  };

  it("closes the socket of a session that ends", async () => {
    const client = new WebSocket(`${(await served()).url}sess_live`);
    await once(client, "message");
    feed.set("sess_live", "ended");
    const [code, reason] = await once(client, "close");
    expect([code, String(reason)]).toEqual([4401, "the session is not live"]);
  });

  it("closes the socket of a session that has ended, and takes no message from it", async () => {
    const { url, received } = await served();
    const client = new WebSocket(`${url}sess_ended`);
    client.on("open", () => client.send("do it"));
    expect((await once(client, "close"))[0]).toBe(4401);
    expect(received).toEqual([]);
  });

  it("loses no message that comes before the check is done", async () => {
    const { url, received } = await served();
    let respond = (_: LiveStatus): void => undefined;
    feed.status = () => new Promise((resolve) => (respond = resolve));
    const client = new WebSocket(`${url}sess_live`);
    await once(client, "open");
    await new Promise<unknown>((resolve) => client.send("early", resolve));
    await eventually(() => expect(feed.calls).toEqual(["now"]));
    respond("live");
    await eventually(() => expect(received).toEqual(["early"]));
  });

  it("forgets a socket that its client closes", async () => {
    const { url, server } = await served();
    const client = new WebSocket(`${url}sess_live`);
    await once(client, "message");
    const [socket] = server.clients;
    client.close(1000);
    await once(socket as WebSocket, "close");
    const close = vi.spyOn(socket as WebSocket, "close");
    const other = new WebSocket(`${url}sess_live`);
    await once(other, "message");
    feed.set("sess_live", "ended");
    await once(other, "close");
    expect(close).not.toHaveBeenCalled();
  });

  it("cuts off a client that does not close in turn", async () => {
    const { url, server } = await served();
    const client = new WebSocket(`${url}sess_live`);
    onTestFinished(() => client.terminate());
    await once(client, "message");
    client.pause(); // it reads nothing, so it never learns that it should close
    const [socket] = server.clients;
    feed.set("sess_live", "ended");
    await once(socket as WebSocket, "close");
  });
});
