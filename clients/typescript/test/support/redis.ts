// Redis servers of the tests, each on a free port of 127.0.0.1, in a folder of its own.
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

const BINARY = process.env["REDIS_SERVER"] ?? "redis-server";

/** A port that nobody listens on. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, "close");
  return port;
}

/** A redis-server, which survives being killed with its data: each write is in its append-only file. */
export class RedisServer {
  readonly #directory = mkdtempSync(join(tmpdir(), "clerk-session-feed-"));
  #process: ChildProcess | undefined;

  private constructor(
    readonly port: number,
    readonly options: readonly string[],
    readonly sentinel: string,
  ) {}

  /** Starts one. `options`: as on the command line of redis-server. */
  static start(...options: string[]): Promise<RedisServer> {
    return RedisServer.#startAs("", options);
  }

  /** Starts a sentinel with these lines of configuration. */
  static startSentinel(lines: string): Promise<RedisServer> {
    return RedisServer.#startAs(lines, []);
  }

  static async #startAs(sentinel: string, options: readonly string[]): Promise<RedisServer> {
    for (let attempt = 0; ; attempt++) {
      const server = new RedisServer(await freePort(), options, sentinel);
      try {
        await server.start();
        return server;
      } catch (error) {
        await server.stop(); // another process took the port first
        if (attempt === 3) throw error;
      }
    }
  }

  get url(): string {
    return `redis://127.0.0.1:${this.port}`;
  }

  get pid(): number {
    return this.#process?.pid ?? 0;
  }

  /** Starts it again, on the same port and with its data; waits until it responds. */
  async start(): Promise<void> {
    const config = join(this.#directory, "redis.conf");
    const durable = 'save ""\nappendonly yes\nappendfsync no\n';
    const common = `port ${this.port}\nbind 127.0.0.1\ndir ${this.#directory}\n`;
    writeFileSync(config, common + (this.sentinel || durable));
    const options = this.sentinel ? ["--sentinel"] : this.options;
    this.#process = spawn(BINARY, [config, ...options], { stdio: "ignore" });
    // Ends with this process, however that ends.
    process.once("exit", this.#kill);
    const died = once(this.#process, "exit");
    for (;;) {
      const responds = await ping(this.port);
      if (this.#process.exitCode !== null || this.#process.signalCode !== null) throw new Error("redis-server ended");
      if (responds) return;
      await Promise.race([died, sleep(10)]);
    }
  }

  readonly #kill = (): void => void this.#process?.kill("SIGKILL");

  /** Kills it, as `kill -9` does; what it had written is there when it starts again. */
  async kill(): Promise<void> {
    const running = this.#process;
    if (!running || running.exitCode !== null || running.signalCode !== null) return;
    const exited = once(running, "exit");
    this.#kill();
    await exited;
    process.off("exit", this.#kill);
  }

  /** Kills it and starts it again. */
  async restart(): Promise<void> {
    await this.kill();
    await this.start();
  }

  /** Ends it, and removes its data. */
  async stop(): Promise<void> {
    await this.kill();
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

/** Whether a server responds, with whatever but that it is loading. */
function ping(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1", () => socket.write("PING\r\n"));
    socket.on("error", () => resolve(false));
    socket.on("close", () => resolve(false));
    socket.on("data", (data) => {
      resolve(!data.toString().startsWith("-LOADING"));
      socket.destroy();
    });
  });
}
