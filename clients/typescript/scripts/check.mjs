// Checks the package as it is published: what it exports, its types, and its size.
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, readdirSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

/** Bytes that the JavaScript of all subpaths may have, compressed. The declarations and the README come on top. */
const LIMIT = 20_000;
const { version } = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8"));
const root = fileURLToPath(new URL("..", import.meta.url));
const run = (command, ...options) =>
  execFileSync("npx", ["--no-install", command, ...options], { cwd: root, stdio: "inherit" });

const directory = mkdtempSync(join(tmpdir(), "clerk-session-feed-"));
try {
  execFileSync("npm", ["pack", "--silent", "--pack-destination", directory], {
    cwd: root,
    stdio: ["ignore", "ignore", "inherit"],
  });
  const tarball = join(directory, `clerk-session-feed-${version}.tgz`);
  run("publint", tarball, "--strict");
  run("attw", tarball, "--profile", "esm-only");
  const names = readdirSync(join(root, "dist"), { recursive: true });
  const gzipped = (end) =>
    gzipSync(
      names
        .filter((name) => name.endsWith(end))
        .map((name) => readFileSync(join(root, "dist", name), "utf8"))
        .join("\n"),
      {
        level: 9,
      },
    ).length;
  const script = gzipped(".js");
  console.log(
    `packed: ${statSync(tarball).size} bytes, of which JavaScript ${script}, declarations ${gzipped(".d.ts")}`,
  );
  if (script > LIMIT) {
    console.error(`The JavaScript has more than ${LIMIT} bytes.`);
    process.exitCode = 1;
  }
} finally {
  rmSync(directory, { recursive: true, force: true });
}
