// The live part of the console, and its keys. Everything else works without this script.
// What comes from the server becomes text nodes and attributes; markup is never made of it (see Trusted Types).
"use strict";

const MAX_ROWS = 150; // in the page: what is older leaves it, so memory stays flat
const CALM_ROWS = 5; // that come at once are marked for a moment; more would flicker, and cost frames
const SILENT_MS = 1700; // the server says something every 0.6 s
const SPARK_SECONDS = 60;

const byId = (id) => document.getElementById(id);

function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

// ---- The feed

const feed = byId("feed");

function link(kind, id, className) {
  const made = element("a", className, id);
  made.href = `/console/${kind}/${encodeURIComponent(id)}`;
  return made;
}

function state(row) {
  if (row.outcome === "stale") {
    return [element("span", "badge stale", "stale"), " ", element("span", "dim", "came too late")];
  }
  const badge = element("span", `badge ${row.tone}`, row.status);
  return row.previous ? [element("span", "dim", `${row.previous} →`), " ", badge] : [badge];
}

function line(row, isCalm) {
  const type = element("td", "", row.type);
  if (row.from) type.append(" ", element("span", "tag", row.from));
  const at = element("td", "num", row.at);
  at.title = row.utc;
  return element(
    "tr",
    isCalm ? `${row.tone} new` : row.tone,
    at,
    type,
    element("td", "", ...state(row)),
    element("td", "", link("sessions", row.session, "id open")),
    element("td", "", link("users", row.user, "id")),
    element("td", "place", ...(row.actor ? [element("span", "tag warn", "impersonated"), " "] : []), row.place),
  );
}

function skippedLine(count) {
  const cell = element("td", "", `${count.toLocaleString("en")} more in this moment are not shown`);
  cell.colSpan = 6;
  return element("tr", "skipped", cell);
}

class Feed {
  constructor() {
    this.rows = byId("rows");
    this.after = feed.dataset.after;
    // Cursors of the rows in the page: those that came while it was made come once more.
    this.seen = new Set(Array.from(this.rows.rows, (row) => row.dataset.cursor));
    this.waiting = []; // of a feed that is held, the newest MAX_ROWS
    this.waitingCount = 0;
    this.isPaused = false;
    this.isHovered = false;
    this.lastHeard = performance.now();
    this.lost = "";
    this.counts = [];
    this.countSince = 0;
    this.pause = byId("pause");
    this.pause.hidden = false;
    this.pause.addEventListener("click", () => this.hold({ isPaused: !this.isPaused }));
    this.rows.addEventListener("pointerenter", () => this.hold({ isHovered: true }));
    this.rows.addEventListener("pointerleave", () => this.hold({ isHovered: false }));
    setInterval(() => this.watch(), 250);
    setInterval(() => this.count(), 1000);
    this.connect();
  }

  connect() {
    const query = new URLSearchParams(location.search);
    query.set("after", this.after);
    this.source = new EventSource(`/console/events?${query}`);
    this.source.addEventListener("beat", () => this.heard());
    this.source.addEventListener("rows", (event) => this.news(event));
    this.source.addEventListener("away", (event) => this.heard(`Redis is away: ${JSON.parse(event.data).detail}`));
    this.source.addEventListener("resync", () => this.gap());
    this.source.addEventListener("bye", () => location.reload());
    this.source.addEventListener("error", () => this.failed(this.source));
  }

  // The browser connects again by itself if the connection broke, not if it was refused.
  failed(source) {
    this.say("Connection lost, trying again …");
    if (source.readyState !== EventSource.CLOSED || source !== this.source) return;
    this.source = null;
    setTimeout(async () => {
      const response = await fetch("/console/health", { method: "HEAD", redirect: "error" }).catch(() => null);
      if (response?.status === 401) location.reload();
      else if (!this.source) this.connect();
    }, 700);
  }

  heard(lost = "") {
    this.lastHeard = performance.now();
    this.lost = lost;
    this.show();
  }

  say(lost) {
    this.lost = lost;
    this.show();
  }

  watch() {
    if (performance.now() - this.lastHeard <= SILENT_MS) return;
    this.say("Connection lost, trying again …");
    // Of a connection that is silent without an end, the browser would never know.
    if (performance.now() - this.lastHeard > 3 * SILENT_MS && this.source) {
      this.lastHeard = performance.now();
      this.source.close();
      this.connect();
    }
  }

  gap() {
    this.rows.prepend(skippedLine(0));
    this.rows.firstChild.firstChild.textContent = "Some events are missing here: the stream was trimmed, or Redis lost it";
  }

  news(event) {
    const data = JSON.parse(event.data);
    this.after = event.lastEventId;
    this.countSince += data.count;
    this.heard();
    this.waiting.push(...data.rows);
    if (this.waiting.length > MAX_ROWS) this.waiting.splice(0, this.waiting.length - MAX_ROWS);
    this.waitingCount += data.count;
    if (!this.isHeld()) this.add();
    this.show();
  }

  isHeld() {
    return this.isPaused || this.isHovered;
  }

  hold(change) {
    Object.assign(this, change);
    this.pause.setAttribute("aria-pressed", String(this.isPaused));
    this.pause.textContent = this.isPaused ? "Go on" : "Pause";
    if (!this.isHeld()) this.add();
    this.show();
  }

  add() {
    const fresh = this.waiting.filter((row) => !this.seen.has(row.cursor));
    const skipped = this.waitingCount - this.waiting.length;
    this.waiting = [];
    this.waitingCount = 0;
    if (!fresh.length) return;
    const made = document.createDocumentFragment();
    const isCalm = fresh.length <= CALM_ROWS;
    for (const row of fresh.reverse()) {
      this.seen.add(row.cursor);
      made.append(line(row, isCalm));
    }
    if (skipped > 0) made.append(skippedLine(skipped));
    this.rows.prepend(made);
    while (this.rows.rows.length > MAX_ROWS) this.rows.deleteRow(-1);
    if (this.seen.size > 4 * MAX_ROWS) this.seen = new Set([...this.seen].slice(-MAX_ROWS));
    byId("empty").hidden = true;
  }

  show() {
    const [kind, text] = this.lost
      ? ["off", this.lost]
      : this.isHeld()
        ? ["held", this.waitingCount ? `Held, ${this.waitingCount.toLocaleString("en")} new` : "Held"]
        : ["on", "Live"];
    const shown = byId("state");
    if (shown.textContent !== text) shown.textContent = text;
    shown.className = `state ${kind}`;
  }

  // Events a second, and a bar for each of the last seconds.
  count() {
    this.counts.push(this.countSince);
    this.countSince = 0;
    if (this.counts.length > SPARK_SECONDS) this.counts.shift();
    const lately = this.counts.slice(-5);
    const rate = lately.reduce((sum, each) => sum + each, 0) / lately.length;
    byId("rate").textContent = rate >= 10 || rate === 0 ? Math.round(rate).toLocaleString("en") : rate.toFixed(1);
    const most = Math.max(1, ...this.counts);
    const spark = byId("spark");
    while (spark.childElementCount < this.counts.length) {
      spark.append(document.createElementNS("http://www.w3.org/2000/svg", "rect"));
    }
    this.counts.forEach((count, index) => {
      const height = count ? Math.max(1.5, (count / most) * 20) : 0.5;
      const bar = spark.children[index];
      const values = { x: 120 - 2 * (this.counts.length - index), y: 20 - height, width: 1.5, height };
      for (const [name, value] of Object.entries(values)) bar.setAttribute(name, String(value));
    });
  }
}

// ---- The time to a session's end

function spanOf(milliseconds) {
  let left = Math.max(0, Math.floor(milliseconds / 1000));
  const parts = [];
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]]) {
    if (left >= size || (unit === "s" && !parts.length)) {
      parts.push(`${Math.floor(left / size)} ${unit}`);
      left %= size;
    } else if (parts.length) break;
  }
  return parts.slice(0, 2).join(" ");
}

for (const shown of document.querySelectorAll("[data-until]")) {
  setInterval(() => {
    shown.textContent = spanOf(Number(shown.dataset.until) - Date.now());
  }, 1000);
}

// ---- Keys

const help = byId("help");
const keysOn = byId("keys-on");
const live = feed && new Feed();

keysOn.checked = localStorage.getItem("keys") !== "off";
keysOn.addEventListener("change", () => localStorage.setItem("keys", keysOn.checked ? "on" : "off"));

function move(step) {
  const links = [...document.querySelectorAll("main tbody a.open")];
  if (!links.length) return;
  const at = links.findIndex((each) => each.closest("tr").classList.contains("selected"));
  const next = links[at < 0 ? 0 : Math.min(links.length - 1, Math.max(0, at + step))];
  for (const row of document.querySelectorAll("tr.selected")) row.classList.remove("selected");
  next.closest("tr").classList.add("selected");
  next.focus();
  next.scrollIntoView({ block: "nearest" });
}

const keys = {
  "/": () => byId("search").select(),
  j: () => move(1),
  k: () => move(-1),
  p: () => live && live.hold({ isPaused: !live.isPaused }),
  "?": () => help.showModal(),
};

document.addEventListener("keydown", (event) => {
  const isTyped = event.target.closest("input, select, textarea, dialog");
  if (event.key === "Escape" && isTyped) event.target.blur();
  if (event.ctrlKey || event.metaKey || event.altKey || isTyped || !(event.key in keys)) return;
  if (!keysOn.checked && event.key !== "?") return;
  event.preventDefault();
  keys[event.key]();
});
