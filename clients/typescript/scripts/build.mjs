// Writes dist: the JavaScript without comments, and the declarations, which editors show, with them.
import { execFileSync } from "node:child_process";
import { rmSync } from "node:fs";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const tsc = (...options) =>
  execFileSync("npx", ["--no-install", "tsc", "-p", "tsconfig.build.json", ...options], { cwd: root, stdio: "inherit" });

rmSync(new URL("../dist", import.meta.url), { recursive: true, force: true });
tsc("--removeComments");
tsc("--declaration", "--emitDeclarationOnly");
