// A Connection to what stands for Redis in tests. Where there is news, nothing waits for a timer: tests may fake the clock.
import {
  BLOCK_MS,
  type Access,
  type Command,
  type Connection,
  type FollowerOptions,
  type Reply,
} from "./connection.js";
import { FeedClosedError } from "./errors.js";
import type { Follower, MemoryRedis } from "./memory.js";
import { mayPass } from "./refusals.js";

export const memoryAccess = (redis: MemoryRedis): Access => ({
  slot: () => 0,
  reader: () => new MemoryConnection(redis),
  follower: (_key, options) => new MemoryConnection(redis, options),
});

class MemoryConnection implements Connection, Follower {
  connections = 1;
  isClosed = false;
  channel: string | undefined;
  readonly received: string[] = [];
  isWaiting = false;
  look = (): void => undefined;

  constructor(
    readonly redis: MemoryRedis,
    readonly options?: FollowerOptions,
  ) {}

  execute(...commands: Command[]): Promise<Reply[]> {
    return this.#work(async () => {
      const responses: Reply[] = [];
      for (const command of commands) {
        const block = command[0].startsWith("XREAD") ? command.lastIndexOf("BLOCK") + 1 : 0;
        const run = (): Reply | undefined => {
          if (this.redis.failure) throw this.redis.failure;
          return this.redis.run(command) ?? (block ? undefined : null);
        };
        responses.push(block ? await this.#wait(run, Number(command[block])) : (run() as Reply));
      }
      return responses;
    });
  }

  ask(...commands: Command[]): Promise<Reply[]> {
    return this.persist(() => this.execute(...commands));
  }

  askTwice = this.execute;

  async persist<T>(attempt: () => Promise<T>): Promise<T> {
    for (;;) {
      try {
        return await attempt();
      } catch (error) {
        if (!mayPass(error)) throw error;
        this.options?.onReconnect(error as Error);
      }
      await this.#work(() => this.#wait(() => (this.redis.failure ? undefined : true)));
      this.connections++;
    }
  }

  async executeApart(...commands: Command[]): Promise<Reply[]> {
    return new MemoryConnection(this.redis).execute(...commands);
  }

  receive(channel: string): Promise<string | null> {
    const next = (): string | undefined => {
      if (this.redis.failure) throw this.redis.failure;
      return this.received.shift();
    };
    this.channel = channel;
    return this.persist(() => this.#work(() => this.#wait(next)));
  }

  /** What is paused for costs nothing here. */
  async pause(): Promise<void> {}

  comparePartitionsAgain(): void {}

  async close(): Promise<void> {
    this.isClosed = true;
    this.look();
    this.redis.followers.delete(this);
    this.redis.checkIdle();
  }

  /** Begins to count as an iterator that works, or waits. */
  async #work<T>(work: () => Promise<T>): Promise<T> {
    if (this.isClosed) throw new FeedClosedError();
    if (this.options) {
      this.redis.followers.delete(this);
      this.redis.followers.add(this);
    }
    return work();
  }

  /** What `check` returns, as soon as it returns something; null when the time is up. */
  #wait<T>(check: () => T | undefined, milliseconds = BLOCK_MS): Promise<T | null> {
    return new Promise((resolve, reject) => {
      const end = (settle: () => void): void => {
        clearTimeout(timer);
        this.isWaiting = false;
        this.look = () => undefined;
        settle();
      };
      this.look = () => {
        try {
          if (this.isClosed) throw new FeedClosedError();
          const found = check();
          if (found !== undefined) return end(() => resolve(found));
          this.isWaiting = true;
        } catch (error) {
          end(() => reject(error as Error));
        }
      };
      const timer = setTimeout(() => end(() => resolve(null)), milliseconds);
      this.look();
      this.redis.checkIdle();
    });
  }
}
