// Consumers of a group that nobody uses any more: programs whose name changes with each start leave many behind.
import type { Connection, Reply } from "./connection.js";
import { FeedError } from "./errors.js";
import { explain, mayPass } from "./refusals.js";
import type { Group } from "./shares.js";
import { asObject, type Info } from "./stream.js";

const infos = (responses: Reply | undefined): Info[] => ((responses ?? []) as Reply[]).map(asObject);

/** Up to which cursor a group got entries; undefined if there is no such group. `groups`: XINFO GROUPS. */
export const deliveredIn = (groups: Reply | undefined, name: string): string | undefined =>
  infos(groups).find((each) => each["name"] === name)?.["last-delivered-id"] as string | undefined;

/**
 * Removes consumers that have nothing to do and were silent for long, if the user of Redis may.
 *
 * None removes itself when it ends: the next program of that name may have begun already.
 */
export class UnusedConsumers {
  #looksAt = 0;

  constructor(
    readonly connection: Connection,
    readonly events: string,
    readonly group: Group,
  ) {}

  /** Whether to look for them again. */
  get isTime(): boolean {
    return performance.now() >= this.#looksAt;
  }

  /**
   * Removes them; resolves to the cursor that the group has to go back to, if one of them woke in that moment.
   *
   * It may have got new entries, which are dropped with it: Redis says how many. (It can't have taken over those of
   * others: none was due soon.)
   */
  async remove(): Promise<string | undefined> {
    const { name, consumer, claimAfter, unusedAfter, lookEvery } = this.group;
    let back: string | undefined;
    try {
      const [soon, groups, consumers] = await this.connection.execute(
        ["XPENDING", this.events, name, "IDLE", Math.ceil(claimAfter / 2), "-", "+", 1],
        ["XINFO", "GROUPS", this.events], // before the next: what they got by then is not dropped
        ["XINFO", "CONSUMERS", this.events, name],
      );
      if ((soon as Reply[]).length) return undefined;
      this.#looksAt = performance.now() + lookEvery;
      for (const each of infos(consumers)) {
        const isUnused = each["pending"] === 0 && (each["idle"] as number) > Math.max(unusedAfter, 10 * claimAfter);
        if (isUnused && each["name"] !== consumer && (await this.#drop(each["name"] as string))) {
          back = deliveredIn(groups, name);
        }
      }
    } catch (error) {
      if (error instanceof FeedError && !mayPass(error)) throw error;
      // Whatever Redis says, the group can do without this.
      this.#looksAt = explain(error).startsWith("NOPERM") ? Infinity : performance.now() + lookEvery;
    }
    return back;
  }

  /** Removes a consumer; resolves to whether entries that it had may have been dropped. */
  async #drop(name: string): Promise<boolean> {
    try {
      const [dropped] = await this.connection.execute(["XGROUP", "DELCONSUMER", this.events, this.group.name, name]);
      return dropped !== 0;
    } catch (error) {
      if (!mayPass(error)) throw error;
      return true; // nobody knows
    }
  }
}
