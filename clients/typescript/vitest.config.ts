import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    // Each starts a redis-server of its own, and they wait more than they compute.
    testTimeout: 60_000,
    hookTimeout: 60_000,
    maxWorkers: 3,
    // However busy the machine is.
    expect: { poll: { timeout: 30_000, interval: 20 } },
  },
});
