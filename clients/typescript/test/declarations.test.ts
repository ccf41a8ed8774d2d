// The declarations, in a program that has neither newer libraries of TypeScript nor the types of Node.
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, expect, it } from "vitest";

const directory = mkdtempSync(join(tmpdir(), "clerk-session-feed-"));
afterAll(() => rmSync(directory, { recursive: true }));

const root = fileURLToPath(new URL("..", import.meta.url));
/** What the compiler says. */
function tsc(...options: string[]): string {
  try {
    return execFileSync("npx", ["--no-install", "tsc", ...options], { cwd: root, encoding: "utf8" });
  } catch (error) {
    return (error as { stdout: string }).stdout;
  }
}

it("need nothing besides ES2022 and the web's types", () => {
  tsc("-p", "tsconfig.build.json", "--outDir", directory, "--declaration", "--emitDeclarationOnly");
  const entries = ["index", "testing", "guards/express", "guards/next", "guards/ws"];
  const files = entries.map((name) => join(directory, `${name}.d.ts`));
  const web = ["--target", "es2022", "--lib", "es2022,dom", "--types", "", "--module", "nodenext"];
  expect(tsc("--ignoreConfig", "--noEmit", "--strict", "--skipLibCheck", "false", ...web, ...files)).toBe("");
});

it("belong to a package that depends on no other", () => {
  const settings = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8"));
  const kinds = ["dependencies", "peerDependencies", "optionalDependencies", "bundleDependencies"];
  expect(kinds.filter((kind) => kind in settings)).toEqual([]);
});
