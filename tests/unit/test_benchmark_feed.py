"""The table of `python -m benchmarks.feed`."""

from benchmarks.feed import Case, Figures, table


def test_it_has_medians_and_the_medians_of_the_ratios_to_another_build() -> None:
    case = Case("stream", "0-0", 100, "threads", "python")
    ours = [Figures(10.0, 8.0, 2.0, 40.0), Figures(20.0, 9.0, 2.0, 40.0), Figures(30.0, 10.0, 2.0, 41.0)]
    theirs = [Figures(20.0, 16.0, 4.0, 44.0), Figures(60.0, 18.0, 2.0, 44.0), Figures(30.0, 10.0, 1.0, 44.0)]
    lines = list(table({"this": {case: ours}, "that": {case: theirs}}))
    assert [line.replace("\N{MULTIPLICATION SIGN}", "x") for line in lines[2:]] == [
        "| stream, threads, without hiredis | 50,000 | 20.0 | 9.0 | 2.0 | 40.0 |",
        "| that build | | 30.0 (2.00x) | 16.0 (2.00x) | 2.0 (1.00x) | 44.0 (1.10x) |",
    ]
