// Checks the package as it is published: what it exports, its types, and its size.
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, readdirSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

/** Bytes that the package may have, packed without its maps. Two thirds of them are JavaScript, which is minified. */
const LIMIT = 30_900;
const { version } = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8"));
const root = fileURLToPath(new URL("..", import.meta.url));
const run = (command, ...options) =>
  execFileSync("npx", ["--no-install", command, ...options], { cwd: root, stdio: "inherit" });

const directory = mkdtempSync(join(tmpdir(), "clerk-session-feed-"));
try {
  const tarball = join(directory, `clerk-session-feed-${version}.tgz`);
  /** Packs a folder; returns how many bytes that makes. */
  const pack = (folder, ...options) => {
    const stdio = ["ignore", "ignore", "inherit"];
    execFileSync("npm", ["pack", "--silent", "--pack-destination", directory, ...options], { cwd: folder, stdio });
    return statSync(tarball).size;
  };
  const published = pack(root);
  run("publint", tarball, "--strict");
  run("attw", tarball, "--profile", "esm-only");
  execFileSync("tar", ["-xzf", tarball], { cwd: directory });
  const folder = join(directory, "package");
  const names = readdirSync(join(folder, "dist"), { recursive: true });
  for (const name of names.filter((each) => each.endsWith(".map"))) rmSync(join(folder, "dist", name));
  const size = pack(folder, "--ignore-scripts");
  const gzipped = (end) => {
    const files = names.filter((name) => name.endsWith(end));
    const text = files.map((name) => readFileSync(join(folder, "dist", name), "utf8")).join("\n");
    return gzipSync(text, { level: 9 }).length;
  };
  console.log(
    `packed without maps: ${size} bytes, of which JavaScript ${gzipped(".js")}, declarations ${gzipped(".d.ts")}`,
  );
  console.log(`with maps, as it is published: ${published} bytes`);
  if (size > LIMIT) {
    console.error(`The package has more than ${LIMIT} bytes.`);
    process.exitCode = 1;
  }
} finally {
  rmSync(directory, { recursive: true, force: true });
}
