// Which node of a cluster holds a key. The nodes are asked, and not the user's client, which learns of a failover only
// when it is used.
import { asError, within, type Host, type Link, type Opening } from "./link.js";

/** Milliseconds that a node has to say where a key is. */
const ASK_MS = 500;
/** Milliseconds that several of them have. The next attempt begins with those that were not asked yet. */
const ASK_ALL_MS = 2000;

/** https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#key-distribution-model */
export function slotOf(key: string): number {
  const begin = key.indexOf("{") + 1;
  const end = begin && key.indexOf("}", begin);
  let crc = 0;
  for (const byte of new TextEncoder().encode(end > begin ? key.slice(begin, end) : key)) {
    crc ^= byte << 8;
    for (let bit = 0; bit < 8; bit++) crc = ((crc << 1) ^ (crc & 0x8000 ? 0x1021 : 0)) & 0xffff;
  }
  return crc % 16384;
}

type Open = (host: Host, opening: Opening) => Promise<Link>;

/** Opens Links to whichever node holds a key now. `seeds`: tells the nodes that the user's client knows. */
export function clusterOpener(
  open: Open,
  seeds: () => Promise<Host[]>,
): (key: string, opening: Opening) => Promise<Link> {
  let hosts: Host[] = [];

  /** The owner of the slot, as one node sees it; what it knows can be asked from now on. */
  async function ask(asked: Host, slot: number, first: readonly Host[], opening: Opening): Promise<Host | undefined> {
    const link = await open(asked, opening);
    try {
      const [response] = await link.send([["CLUSTER", "SLOTS"]]);
      if (response?.status !== "fulfilled") throw response?.reason;
      const known: Host[] = [];
      let owner: Host | undefined;
      for (const [from, to, ...nodes] of response.value as [number, number, ...[string | null, number][]][]) {
        // A node that does not know its own name is where it was asked.
        const members = nodes.map(([host, port]): Host => ({ host: host || asked.host, port }));
        known.push(...members);
        if (from <= slot && slot <= to) owner = members[0];
      }
      const stay = hosts.filter((host) => includes(known, host) || includes(first, host));
      hosts = [...stay, ...known].filter((host, index, all) => all.findIndex((each) => isSame(each, host)) === index);
      return owner;
    } finally {
      link.close();
    }
  }

  return async (key, opening) => {
    const first = await seeds();
    hosts.push(...first.filter((host) => !includes(hosts, host)));
    let failed = new Error("The cluster has no nodes.");
    const deadline = performance.now() + ASK_ALL_MS;
    for (let left = hosts.length; left > 0 && performance.now() < deadline && !opening.signal.aborted; left--) {
      const asked = hosts[0] as Host;
      // The next time, another comes first: this one may hang, or not know of a failover.
      hosts = [...hosts.slice(1), asked];
      try {
        const owner = await within(opening, ASK_MS, (asking) => ask(asked, slotOf(key), first, asking));
        if (owner) return await open(owner, opening);
      } catch (error) {
        failed = asError(error);
      }
    }
    throw failed;
  };
}

const isSame = (a: Host, b: Host): boolean => a.host === b.host && a.port === b.port;
const includes = (hosts: readonly Host[], host: Host): boolean => hosts.some((each) => isSame(each, host));
