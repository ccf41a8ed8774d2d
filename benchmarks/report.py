import dataclasses
def in_one_line(r):
    return " ".join(f"{k}={v:.2f}" for p in (r.saturated, r.steady) for k, v in dataclasses.asdict(p).items())
