import { uptime } from "node:os";

/** Milliseconds by which two looks at `uptime` may differ without sleep: some systems count whole seconds. */
const COARSE_MS = 1000;

let slept = 0;
let last: readonly [now: number, up: number] | undefined;

/** Milliseconds since some time in the past. Goes on while the machine sleeps, as `performance.now` does not on Linux. */
export function clock(): number {
  const now = performance.now();
  try {
    const up = uptime() * 1000;
    const missed = last ? up - last[1] - (now - last[0]) : 0;
    if (missed > COARSE_MS) slept += missed;
    last = [now, up];
  } catch {
    // Deno may not be allowed to say.
  }
  return now + slept;
}
