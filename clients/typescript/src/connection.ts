import type { OnReconnect } from "./errors.js";

export type { OnReconnect };

/** Milliseconds that a read waits for something new before it looks around. Some providers bill each command. */
export const BLOCK_MS = 20_000;

/** A command's name and its arguments. */
export type Command = readonly [string, ...(string | number)[]];

/** A response of Redis in the shapes of RESP2: maps come as names and values in turns, doubles and ids as strings. */
export type Reply = string | number | null | Reply[];

/** What the rules of a feed (`reads`, `stream`, `group`, `mirror`) need of a connection to Redis. */
export interface Connection {
  /** Number of connections made so far. A new one may lead to another server. */
  readonly connections: number;
  /** Whether `close` was called, or the signal of the caller was aborted. */
  readonly isClosed: boolean;
  /** Sends commands in one round trip; rejects with the first error among the responses. */
  execute(...commands: Command[]): Promise<Reply[]>;
  /** The responses, however many attempts it takes; rejects with an error that no attempt can help. */
  ask(...commands: Command[]): Promise<Reply[]>;
  /** The responses; a second attempt if the first may have met a dead connection. For short reads. */
  askTwice(...commands: Command[]): Promise<Reply[]>;
  /** What an attempt resolves to, however many it takes; rejects with an error that no attempt can help. */
  persist<T>(attempt: () => Promise<T>): Promise<T>;
  /** Sends commands on a connection of their own, which waits for nothing else: after `close`, too. */
  executeApart(...commands: Command[]): Promise<Reply[]>;
  /** The next message of a channel; null if there is none for a while. Rejects like `ask`. */
  receive(channel: string): Promise<string | null>;
  /** Waits, but no longer than until the connection is closed. */
  pause(milliseconds: number): Promise<void>;
  /** Lets the next command compare the number of partitions again: what is missing may have been moved. */
  comparePartitionsAgain(): void;
  /** Closes it. Whoever waits for Redis stops at once with a FeedClosedError. */
  close(): Promise<void>;
}

/** What a follower's connection is told. */
export interface FollowerOptions {
  readonly onReconnect: OnReconnect;
}

/** Leads to Redis: what a SessionFeed makes its connections with. */
export interface Access {
  /** A number that is the same for keys that one connection can serve. */
  slot(key: string): number;
  /** A connection for short reads, to the server that holds the key. */
  reader(key: string): Connection;
  /** A connection for reads that wait. */
  follower(key: string, options: FollowerOptions): Connection;
}

/** What an error says, and how it is called. Node's own errors about several addresses have no text. */
export function messageOf(error: unknown): string {
  const { message, code, name } =
    error instanceof Error ? (error as NodeJS.ErrnoException) : { message: String(error) };
  return message || code || name || "";
}
