import { NoResponseError } from "../errors.js";
import type { Command, Reply } from "../connection.js";

/** One connection to one server. When it is lost, it is not made again: the next one is another Link. */
export interface Link {
  /** Sends commands in one write; resolves to their responses, or to what went wrong instead, in their order. */
  send(commands: readonly Command[]): Promise<PromiseSettledResult<Reply>[]>;
  /** Begins to get the messages of a channel. */
  subscribe(channel: string, onMessage: (message: string) => void): Promise<unknown>;
  /** Resolves when the server has responded; in a subscription, too. */
  ping(): Promise<unknown>;
  /** Closes it, without waiting for anything. */
  close(): void;
}

/** How a Link is opened. */
export interface Opening {
  /** Milliseconds for each step. */
  readonly timeout: number;
  /** Aborted when nobody wants the Link any more: it is closed, also while it is opened. */
  readonly signal: AbortSignal;
  /** Called when the Link is lost, or leads to a server that is not the right one any more. */
  onEnd(error: Error): void;
}

/** What a user's client is to a feed. */
export interface Driver {
  /** A number that is the same for keys that one Link can serve. */
  slot(key: string): number;
  /** A Link over the client itself, if it can be used for short reads. Its owner closes it. */
  readonly share: ((opening: Opening) => Pick<Link, "send" | "close">) | undefined;
  /** Opens a Link to the server that holds the key, and may be written to. */
  open(key: string, opening: Opening): Promise<Link>;
}

/** An address of a server. */
export interface Host {
  readonly host: string;
  readonly port: number;
}

/** What a client emits as an error may be a text. */
export const asError = (error: unknown): Error => (error instanceof Error ? error : new Error(String(error)));

/** A Link over the user's client itself. What that connects to next may be another server. */
export function sharedLink(client: any, { onEnd }: Opening, send: Link["send"]): Pick<Link, "send" | "close"> {
  const onReady = (): void => onEnd(new Error("The client has connected again."));
  client.on("ready", onReady);
  return { send, close: () => client.off("ready", onReady) };
}

/** What `work` resolves to, if it takes no longer than `milliseconds`; then, its signal is aborted. */
export async function within<T>(
  opening: Opening,
  milliseconds: number,
  work: (opening: Opening) => Promise<T>,
): Promise<T> {
  const timeout = Math.min(milliseconds, opening.timeout);
  const controller = new AbortController();
  const abort = (): void => controller.abort();
  opening.signal.addEventListener("abort", abort);
  let timer;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new NoResponseError(`no response within ${timeout} ms`)), timeout);
  });
  try {
    return await Promise.race([work({ timeout, signal: controller.signal, onEnd: () => undefined }), late]);
  } catch (error) {
    abort();
    throw error;
  } finally {
    clearTimeout(timer);
    opening.signal.removeEventListener("abort", abort);
  }
}
