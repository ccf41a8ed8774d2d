// Checks the package as it is published: what it exports, its types, and its size.
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const LIMIT = 20_000;
const root = fileURLToPath(new URL("..", import.meta.url));
const run = (command, ...options) => execFileSync("npx", ["--no-install", command, ...options], { cwd: root, stdio: "inherit" });

const directory = mkdtempSync(join(tmpdir(), "clerk-session-feed-"));
try {
  execFileSync("npm", ["pack", "--silent", "--pack-destination", directory], { cwd: root, stdio: ["ignore", "ignore", "inherit"] });
  const tarball = join(directory, "clerk-session-feed-0.1.0.tgz");
  run("publint", tarball, "--strict");
  run("attw", tarball, "--profile", "esm-only");
  const { size } = statSync(tarball);
  console.log(`packed: ${size} bytes of ${LIMIT}`);
  if (size > LIMIT) process.exitCode = 1;
} finally {
  rmSync(directory, { recursive: true, force: true });
}
