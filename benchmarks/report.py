"""Figures to Markdown, to a chart and to bars of text; and what they were measured on."""

import datetime
import json
import os
import platform
import re
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import click

from benchmarks.measure import Growth, Round
from benchmarks.processes import BUN, CORES, ROOT, can_run

DOCS: Final = ROOT / "docs" / "benchmarks.md"
THIS: Final = "this service"

_BAR: Final = 40
"""Characters of the longest bar."""


@dataclass(frozen=True)
class Figure:
    name: str
    of: Callable[[Round], float]
    digits: int = 0

    def median(self, rounds: Sequence[Round]) -> float:
        return statistics.median(map(self.of, rounds))

    def text(self, value: float) -> str:
        return f"{value:,.{self.digits}f}"


CPU: Final = Figure("CPU µs per delivery, at saturation", lambda r: r.saturated.cpu_us)
THROUGHPUT: Final = Figure("deliveries per second, at saturation", lambda r: r.saturated.per_second)
WORKER: Final = Figure("memory of the worker (RSS), MB", lambda r: r.saturated.worker_mb, 1)
_LATENCIES: Final = (
    ("p50 ms", "p50_ms"),
    ("p99 ms", "p99_ms"),
    ("p50 ms to the subscriber", "receipt_p50_ms"),
    ("p99 ms to the subscriber", "receipt_p99_ms"),
)


def _steady(name: str, attribute: str, rate: int, digits: int = 0) -> Figure:
    return Figure(f"{name}, at {rate}/s", lambda r: getattr(r.steady[rate], attribute), digits)


def figures(rates: Iterable[int]) -> tuple[Figure, ...]:
    return (
        CPU,
        *(_steady("CPU µs per delivery", "cpu_us", rate) for rate in rates),
        THROUGHPUT,
        Figure("the server's part of its core then, %", lambda r: r.saturated.core * 100),
        Figure("p50 ms, at saturation", lambda r: r.saturated.p50_ms, 1),
        Figure("p99 ms, at saturation", lambda r: r.saturated.p99_ms, 1),
        *(_steady(*latency, rate, 2) for rate in rates for latency in _LATENCIES),
        Figure("memory of all its processes, MB", lambda r: r.saturated.memory_mb),
        WORKER,
        Figure("Redis: CPU µs per delivery, at saturation", lambda r: r.saturated.redis_cpu_us),
        Figure("Redis: bytes per session", lambda r: r.saturated.session_bytes),
    )


def against(rounds: Mapping[str, Mapping[int, Round]], base: str) -> Iterator[str]:
    """What differs between builds; each round is compared with the same of `base`: noise comes and goes."""
    rates = next(iter(next(iter(rounds.values())).values())).steady
    shown = [figure for figure in figures(rates) if figure.name.startswith("CPU") or figure is WORKER]
    yield f"| median; median of its ratios to {base} (round by round) | {' | '.join(f.name for f in shown)} |"
    yield f"| --- | {' | '.join('---:' for _ in shown)} |"
    for name, of in rounds.items():
        pairs = [] if name == base else [(of[n], rounds[base][n]) for n in of if n in rounds.get(base, ())]
        cells = []
        for figure in shown:
            cells.append(figure.text(figure.median(list(of.values()))))
            if ratios := [figure.of(this) / figure.of(other) for this, other in pairs]:
                each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
                cells[-1] += f"; {statistics.median(ratios):.2f}× ({each})"
        yield f"| {name} | {' | '.join(cells)} |"


def table(rounds: Mapping[str, Sequence[Round]]) -> Iterator[str]:
    """Medians, and how many times this service's that is."""
    yield f"| median of {max(map(len, rounds.values()))} rounds | {' | '.join(rounds)} |"
    yield f"| --- | {' | '.join('---:' for _ in rounds)} |"
    for figure in figures(next(iter(rounds.values()))[0].steady):
        yield f"| {figure.name} | {' | '.join(_cells(figure, rounds))} |"
        if figure is CPU:
            spread = (", ".join(figure.text(figure.of(each)) for each in of) for of in rounds.values())
            yield f"| the same, round by round | {' | '.join(spread)} |"


def _cells(figure: Figure, rounds: Mapping[str, Sequence[Round]]) -> Iterator[str]:
    for name, of in rounds.items():
        text = figure.text(figure.median(of))
        if name != THIS and (base := figure.median(rounds[THIS]) if THIS in rounds else 0):
            text += f" ({figure.median(of) / base:.2f}×)"
        yield text


def summary(rounds: Mapping[str, Sequence[Round]]) -> str:
    """How much of each other's CPU time this service takes."""
    if THIS not in rounds:
        return ""
    own = CPU.median(rounds[THIS])
    parts = [f"{own / CPU.median(of):.2f}× that of {name}" for name, of in rounds.items() if name != THIS]
    return f"CPU time of this service per delivery, at saturation: {', '.join(parts)}." if parts else ""


def bars(figure: Figure, rounds: Mapping[str, Sequence[Round]]) -> Iterator[str]:
    yield figure.name
    values = {name: figure.median(of) for name, of in rounds.items()}
    longest = max(values.values())
    for name, value in values.items():
        yield f"  {name:22} {'█' * round(value / longest * _BAR):{_BAR}} {figure.text(value)}"


def chart(rounds: Mapping[str, Sequence[Round]], path: Path) -> None:
    """Draw the two figures that matter most as a PNG."""
    from matplotlib.figure import Figure as Canvas  # noqa: PLC0415  # takes a second, and is not in .venv

    names = list(rounds)[::-1]
    canvas = Canvas(figsize=(9, 0.8 + 0.4 * len(names)), dpi=150, layout="constrained")
    for axes, figure, better in zip(
        canvas.subplots(1, 2, sharey=True), (CPU, THROUGHPUT), ("less", "more"), strict=True
    ):
        values = [figure.median(rounds[name]) for name in names]
        colours = ["#d9480f" if name == THIS else "#adb5bd" for name in names]
        drawn = axes.barh(names, values, color=colours)
        axes.bar_label(drawn, [figure.text(value) for value in values], padding=3, fontsize=9)
        axes.set_title(f"{figure.name}\n({better} is better)", fontsize=10)
        axes.margins(x=0.18)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.tick_params(left=False, bottom=False, labelbottom=False)
    canvas.savefig(path, metadata={"Software": None})


def growth_tables(grown: Sequence[Growth]) -> Iterator[str]:
    for growth in grown:
        columns = ("CPU µs per delivery", "its measurements", "Redis: CPU µs", "per second", "p50 ms", "p99 ms")
        yield f"| {growth.what} | {' | '.join(columns)} |"
        yield "| ---: | ---: | --- | ---: | ---: | ---: | ---: |"
        for size, measured in growth.measured.items():
            if not measured:
                yield f"| {size} | void | | | | | |"
                continue
            cpu_us, redis_cpu_us, per_second, p50_ms, p99_ms = (
                statistics.median(getattr(each, name) for each in measured)
                for name in ("cpu_us", "redis_cpu_us", "per_second", "p50_ms", "p99_ms")
            )
            each = ", ".join(f"{one.cpu_us:.0f}" for one in measured)
            yield (
                f"| {size} | {cpu_us:.0f} | {each} | {redis_cpu_us:.0f} | {per_second:,.0f} "
                f"| {p50_ms:.1f} | {p99_ms:.1f} |"
            )
        yield ""


def memory_table(samples: Sequence[tuple[int, float]]) -> Iterator[str]:
    """The worker's memory in MB, after so many deliveries."""
    if samples:
        yield "| deliveries | memory of the worker, MB |"
        yield "| ---: | ---: |"
        for sent, megabytes in samples:
            yield f"| {sent:,} | {megabytes:.1f} |"


def growth_chart(grown: Sequence[Growth], samples: Sequence[tuple[int, float]], path: Path) -> None:
    from matplotlib.figure import Figure as Canvas  # noqa: PLC0415  # as above

    panels = len(grown) + bool(samples)
    canvas = Canvas(figsize=(2.6 * panels, 2.8), dpi=150, layout="constrained")
    (axes,) = canvas.subplots(1, panels, squeeze=False)
    for axis, growth in zip(axes, grown, strict=False):
        sizes = [size for size, measured in growth.measured.items() if measured]
        for name, attribute, colour in (("server", "cpu_us", "#d9480f"), ("Redis", "redis_cpu_us", "#adb5bd")):
            medians = [
                statistics.median(getattr(one, attribute) for one in measured)
                for measured in growth.measured.values()
                if measured
            ]
            axis.plot(sizes, medians, marker="o", color=colour, label=name)
        axis.set_title(f"CPU µs per delivery\nby {growth.what}", fontsize=9)
        axis.legend(fontsize=8, frameon=False)
    if samples:
        axes[-1].plot([sent / 1000 for sent, _ in samples], [size for _, size in samples], color="#d9480f")
        axes[-1].set_title("MB of a worker\nby thousands of deliveries", fontsize=9)
    for axis in axes:
        axis.set_ylim(0, axis.get_ylim()[1] * 1.1)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    canvas.savefig(path, metadata={"Software": None})


def in_one_line(measured: Round) -> str:
    full = measured.saturated
    return (
        f"{full.cpu_us:4.0f} µs CPU, {full.per_second:5.0f}/s with {full.core:.0%} of its core, "
        f"p99 {full.p99_ms:.0f} ms, {full.worker_mb:.1f} MB"
    ) + "".join(
        f"; at {rate}/s {steady.cpu_us:4.0f} µs CPU, "
        f"p99 {steady.p99_ms:.2f} ms, to the subscriber {steady.receipt_p99_ms:.2f} ms "
        f"(the sender was late by {steady.late_p99_ms:.2f} ms)"
        for rate, steady in measured.steady.items()
    )


def write(name: str, lines: Sequence[str], path: Path = DOCS) -> None:
    """Put lines into the document, in place of what was generated there under that name."""
    begin, end = f"<!-- {name}: generated -->\n", f"<!-- {name}: end -->"
    text = path.read_text() if path.exists() else f"# Benchmarks\n\n{begin}{end}\n"
    if begin not in text:
        raise click.ClickException(f"{path} has no {begin.strip()}")
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    path.write_text(f"{before}{begin}\n{chr(10).join(lines)}\n\n{end}{after}")


class Surroundings:
    """What a benchmark ran on, and how much of it others had meanwhile."""

    def __init__(self) -> None:
        self._commit = _output("git", "-C", str(ROOT), "describe", "--always", "--dirty")
        self._busy, self._all = _machine_seconds()
        self._own = _own_seconds()

    def lines(self, command: str, redis_version: str) -> Iterator[str]:
        arguments = f' ARGS="{shlex.join(sys.argv[1:])}"' if sys.argv[1:] else ""
        busy, total = (now - then for now, then in zip(_machine_seconds(), (self._busy, self._all), strict=True))
        others = max(0.0, busy - (_own_seconds() - self._own)) / total
        now = datetime.datetime.now(datetime.UTC)
        yield f"{now:%Y-%m-%d %H:%M} UTC, commit {self._commit}, `{command}{arguments}`."
        yield f"Machine: {_processor()}, {os.cpu_count()} cores, {_memory_gb()} GB; {_system()}."
        if len(CORES) == 1:
            yield "The server shared its only core with wrk and Redis."
        yield f"Other programs had {others:.0%} of the machine meanwhile."
        yield f"{_python()}; {_packages()}; {_node()}{_bun()}Redis {redis_version}, {_wrk()}."


def _machine_seconds() -> tuple[float, float]:
    """Return for how many seconds the machine's cores were busy (or its host's), and how many there were."""
    # https://man7.org/linux/man-pages/man5/proc_stat.5.html: user nice system idle iowait irq softirq steal
    ticks = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    total = sum(ticks) / os.sysconf("SC_CLK_TCK")
    return total - (ticks[3] + ticks[4]) / os.sysconf("SC_CLK_TCK"), total


def _own_seconds() -> float:
    """CPU time of this process, and of the children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return "unknown"
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return (done.stdout + done.stderr).strip() or "unknown"


def _processor() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{found[1] if found else platform.machine()}{' (virtual)' if _is_virtual() else ''}"


def _is_virtual() -> bool:
    return "hypervisor" in Path("/proc/cpuinfo").read_text()


def _memory_gb() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9)


def _system() -> str:
    return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, Linux {platform.release()}"


def _python() -> str:
    return f"Python {platform.python_version()} ({os.path.realpath('/proc/self/exe')})"


def _packages() -> str:
    names = (
        *("granian", "flask", "gunicorn", "fastapi", "uvicorn", "uvloop", "httptools"),
        *("svix", "redis", "hiredis", "orjson", "msgspec", "pydantic"),
    )
    return ", ".join(f"{name} {version(name)}" for name in names)


def _node() -> str:
    if shutil.which("node") is None:
        return ""
    pinned = json.loads((ROOT / "benchmarks" / "package.json").read_text())["dependencies"]
    packages = ", ".join(f"{name} {number}" for name, number in pinned.items())
    return f"Node {_output('node', '--version').removeprefix('v')}, {packages}; "


def _bun() -> str:
    return f"Bun {_output(BUN, '--version')}; " if can_run(BUN) else ""


def _wrk() -> str:
    return _output("wrk", "-v").partition(" [")[0]
