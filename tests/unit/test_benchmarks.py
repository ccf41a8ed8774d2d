"""The benchmark's figures are what they are called, and its deliveries are genuine."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from support.constants import SECRET

from benchmarks import compare, deliveries, measure, processes, report
from benchmarks.measure import Round, Saturated, Steady
from service.clerk.signature import Verifier


def test_deliveries_are_genuine_distinct_and_of_the_sizes_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "deliveries"

    deliveries.prepare(path, SECRET, 40, range(2_000, 3_001))

    verifier, ids = Verifier([SECRET]), set()
    for request in deliveries.read(path, 100):
        head, _, body = request.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
        event = json.loads(body)
        ids |= {verifier.verify(headers, body).id, event["data"]["id"], event["data"]["user"]["id"]}
        assert 2_000 <= len(body) == int(headers["content-length"]) <= 3_000
    assert len(ids) == 40 * 3


def test_without_npm_the_contenders_in_javascript_are_left_out_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [each.name for each in compare.available(tmp_path)] == [
        *("this service", "(a) Flask, gunicorn", "(b) FastAPI, uvicorn")
    ]

    fastify, bun = capsys.readouterr().err.splitlines()
    assert fastify.startswith("(c) Fastify, Node is left out: npm has not installed fastify, ioredis, svix (")
    assert bun.startswith("(d) Bun is left out: npm has not installed bun, svix (")


def test_what_the_contenders_need_of_npm_is_pinned() -> None:
    package = json.loads((processes.NODE_MODULES.parent / "package.json").read_text())

    pinned = package["dependencies"] | package["optionalDependencies"]

    assert {name for each in compare.CONTENDERS for name in each.npm_packages} == set(pinned)
    assert all(re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+", version) for version in pinned.values())


def a_round(**figures: float) -> Round:
    """A round with these figures of its saturated part, all others being 10."""
    saturated = {field.name: figures.get(field.name, 10.0) for field in dataclasses.fields(Saturated)}
    return Round(Saturated(**saturated), {500: Steady(*[10.0] * len(dataclasses.fields(Steady)))})


ROUNDS = {
    report.THIS: [a_round(cpu_us=cpu_us, per_second=1_000) for cpu_us in (100, 900, 120)],
    "(a)": [a_round(cpu_us=cpu_us, per_second=400) for cpu_us in (310, 290, 300)],
}


def test_the_table_has_medians_and_ratios_to_this_service() -> None:
    rows = list(report.table(ROUNDS))

    assert rows[0] == "| median of 3 rounds | this service | (a) |"
    assert "| CPU µs per delivery, at saturation | 120 | 300 (2.50×) |" in rows
    assert "| the same, round by round | 100, 900, 120 | 310, 290, 300 |" in rows
    assert "| CPU µs per delivery, at 500/s | 10 | 10 (1.00×) |" in rows
    assert "| deliveries per second, at saturation | 1,000 | 400 (0.40×) |" in rows
    assert report.summary(ROUNDS).endswith("0.40× that of (a).")


def test_a_build_is_compared_round_by_round_and_a_void_round_with_nothing() -> None:
    def build(*cpu_us: float) -> dict[int, Round]:
        return {number: a_round(cpu_us=each) for number, each in enumerate(cpu_us) if each}

    rows = list(report.against({"this": build(80, 300, 99, 90), "e4052d6": build(100, 200, 0, 100)}, "e4052d6"))

    assert rows[2].startswith("| this | 94; 0.90× (0.80, 1.50, 0.90) | 10; 1.00× (1.00, 1.00, 1.00) | 10.0; 1.00×")
    assert rows[3] == "| e4052d6 | 100 | 10 | 10.0 |"
    assert list(report.against({"this": build(80)}, "e4052d6"))[2] == "| this | 80 | 10 | 10.0 |"


def test_bars_are_as_long_as_their_figures() -> None:
    _, this, other = report.bars(report.CPU, ROUNDS)

    assert this.endswith(" 120")
    assert other.endswith(" 300")
    assert this.count("█") == other.count("█") * 120 / 300


def test_charts_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    grown = [measure.Growth("workers", {"1": [ROUNDS["(a)"][0].saturated]})]

    report.chart(ROUNDS, tmp_path / "a.png")
    report.growth_chart(grown, [(0, 70.0), (1_000, 71.0)], tmp_path / "b.png")

    assert {path.read_bytes()[:4] for path in tmp_path.iterdir()} == {b"\x89PNG"}


def test_what_was_generated_is_replaced_and_the_rest_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "benchmarks.md"
    path.write_text(
        "before\n<!-- a: generated -->\nold\n<!-- a: end -->\nafter\n<!-- b: generated -->\n<!-- b: end -->\n"
    )

    report.write("a", ["new"], path)

    assert path.read_text() == (
        "before\n<!-- a: generated -->\n\nnew\n\n<!-- a: end -->\nafter\n<!-- b: generated -->\n<!-- b: end -->\n"
    )
