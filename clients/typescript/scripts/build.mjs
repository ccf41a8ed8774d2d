// Writes dist: the JavaScript, small and without comments; its maps, by which `node --enable-source-maps` and debuggers
// show the lines of src; and the declarations with the comments, which editors show.
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, readdirSync, renameSync, rmSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { rolldown } from "rolldown";

const root = fileURLToPath(new URL("..", import.meta.url));
const { exports } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
/** What can be imported, as `guards/ws`. */
const entries = Object.values(exports)
  .flatMap((target) => target.default ?? [])
  .map((file) => file.replace(/^\.\/dist\/|\.js$/g, ""))
  .filter((name) => existsSync(join(root, "src", `${name}.ts`)));

/** The declarations that those of an entry need, and itself. */
function needed(file, found = new Set()) {
  if (found.has(file)) return found;
  found.add(file);
  for (const [, target] of readFileSync(file, "utf8").matchAll(/(?:from|import)\s*\(?"(\.[^"]+)\.js"/g)) {
    needed(`${resolve(dirname(file), target)}.d.ts`, found);
  }
  return found;
}

/** Renames a folder; returns false if there is none, or something is in its place. */
function move(from, to) {
  try {
    renameSync(from, to);
    return true;
  } catch (error) {
    if (["ENOENT", "ENOTEMPTY", "EEXIST"].includes(error.code)) return false;
    throw error;
  }
}

// Others may build, or read dist, at the same time: what is there is all of one build.
const made = mkdtempSync(join(root, "dist-"));
try {
  const options = ["-p", "tsconfig.build.json", "--outDir", made, "--declaration", "--emitDeclarationOnly"];
  execFileSync("npx", ["--no-install", "tsc", ...options], { cwd: root, stdio: "inherit" });
  const declared = new Set(entries.flatMap((name) => [...needed(join(made, `${name}.d.ts`))]));
  for (const name of readdirSync(made, { recursive: true })) {
    const file = join(made, name);
    if (file.endsWith(".d.ts") && !declared.has(file)) rmSync(file);
  }
  const input = Object.fromEntries(entries.map((name) => [name, join(root, "src", `${name}.ts`)]));
  const bundle = await rolldown({ input, platform: "node", cwd: root, external: [/^node:/] });
  const minify = {
    compress: { target: "es2022" },
    mangle: { toplevel: true, keepNames: { class: true, function: false } },
  };
  // The guards for requests load nothing of the feed: they are of use with another source, and where Node is not.
  const codeSplitting = { groups: [{ name: "feed", test: /src\/(?!testing|memory|guards)/ }] };
  const output = { format: "es", chunkFileNames: "[name].js", minify, codeSplitting, comments: false, sourcemap: true };
  await bundle.write({ dir: made, ...output });
  const dist = join(root, "dist");
  const former = `${made}-former`;
  while (!move(made, dist)) if (move(dist, former)) rmSync(former, { recursive: true });
} finally {
  rmSync(made, { recursive: true, force: true });
}
