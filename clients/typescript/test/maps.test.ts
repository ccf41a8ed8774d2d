// Stack traces of the package as it is published.
import { readFileSync } from "node:fs";
import { afterAll, beforeAll, expect, it } from "vitest";
import { Project } from "./support/project.js";

let project: Project;
beforeAll(async () => {
  project = await Project.make({});
});
afterAll(() => project.remove());

it("show the lines of the sources, with --enable-source-maps", async () => {
  project.write("broken.mjs", 'import { SessionFeed } from "clerk-session-feed";\nnew SessionFeed({});\n');
  const program = project.start("broken.mjs", { NODE_OPTIONS: "--enable-source-maps" });
  await program.ended;
  const source = readFileSync(new URL("../src/clients/index.ts", import.meta.url), "utf8").split("\n");
  const line = source.findIndex((text) => text.includes("throw new TypeError"));
  expect(program.printed.stderr).toContain(`src/clients/index.ts:${line + 1}`);
  expect(program.printed.stderr).toContain(source[line]);
});
