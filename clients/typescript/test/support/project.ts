// A project of a user's own, with the package as it is published, for the programs of the README and of examples/.
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { cpSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const run = promisify(execFile);

/** A running program, and what it has printed. */
export interface Program {
  readonly printed: { stdout: string; stderr: string };
  /** Resolves to what the pattern finds in the program's stdout or stderr, once it is there. */
  find(pattern: RegExp): Promise<RegExpMatchArray>;
  /** Ends it, and resolves to its exit status. */
  stop(signal?: NodeJS.Signals): Promise<number | null>;
  /** Resolves to the exit status. */
  readonly ended: Promise<number | null>;
}

/** A folder with the package and its users' packages in `node_modules`; `packages`: by name, as this project names them. */
export class Project {
  readonly folder = mkdtempSync(join(tmpdir(), "clerk-session-feed-"));
  readonly #programs: Program[] = [];

  private constructor() {}

  static async make(packages: Record<string, string>): Promise<Project> {
    const project = new Project();
    writeFileSync(join(project.folder, "package.json"), '{ "private": true, "type": "module" }');
    for (const [name, source] of Object.entries(packages)) {
      const link = join(project.folder, "node_modules", name);
      mkdirSync(dirname(link), { recursive: true });
      symlinkSync(join(ROOT, "node_modules", source), link);
    }
    const packed = join(project.folder, "node_modules", "clerk-session-feed");
    mkdirSync(packed, { recursive: true });
    cpSync(join(ROOT, "package.json"), join(packed, "package.json"));
    await run(process.execPath, ["scripts/build.mjs"], { cwd: ROOT });
    cpSync(join(ROOT, "dist"), join(packed, "dist"), { recursive: true });
    return project;
  }

  write(name: string, text: string): void {
    writeFileSync(join(this.folder, name), text);
  }

  /** Runs a program with Node. The environment has nothing of the user's own settings. */
  start(name: string, environment: Record<string, string> = {}): Program {
    const usual = { PATH: process.env["PATH"] ?? "", HOME: this.folder, CLERK_TELEMETRY_DISABLED: "1" };
    const child = spawn(process.execPath, [name], { cwd: this.folder, env: { ...usual, ...environment } });
    const printed = { stdout: "", stderr: "" };
    const waiting = new Set<() => void>();
    for (const stream of ["stdout", "stderr"] as const)
      child[stream].setEncoding("utf8").on("data", (text: string) => {
        printed[stream] += text;
        for (const wake of waiting) wake();
      });
    const ended = once(child, "close").then(([status]) => {
      for (const wake of waiting) wake();
      return status as number | null;
    });
    const program: Program = {
      printed,
      ended,
      find: (pattern) =>
        new Promise((resolve, reject) => {
          const look = () => {
            const found = printed.stdout.match(pattern) ?? printed.stderr.match(pattern);
            const isOver = child.exitCode !== null || child.signalCode !== null;
            if (!found && !isOver) return;
            waiting.delete(look);
            if (found) resolve(found);
            else reject(new Error(`${name} ended without ${pattern}: ${JSON.stringify(printed)}`));
          };
          waiting.add(look);
          look();
        }),
      stop: (signal = "SIGTERM") => {
        child.kill(signal);
        return ended;
      },
    };
    this.#programs.push(program);
    return program;
  }

  /** Ends what runs in it, and removes it. */
  async remove(): Promise<void> {
    await Promise.all(this.#programs.map((program) => program.stop("SIGKILL")));
    rmSync(this.folder, { recursive: true, force: true });
  }
}
