#!/usr/bin/env bash
# uvicorn 0.54.0 with --factory takes any TypeError out of the factory for a factory that is none: it logs one line
# without a traceback, and exits with status 3. Any other exception comes with its traceback, and status 1. So a mistake deep in an
# application's start (a wrong argument somewhere) can't be found from the log. Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check uvicorn==0.54.0
cat >"$folder/mine.py" <<'PYTHON'
def deep_inside(argument):
    raise AssertionError("never called")


def wrong_type():
    deep_inside()


def wrong_value():
    raise ValueError("a mistake")
PYTHON
cd "$folder"
for factory in wrong_type wrong_value; do
  status=0
  venv/bin/uvicorn --factory "mine:$factory" --port 0 >"$factory.log" 2>&1 || status=$?
  echo "$factory: status $status, lines with Traceback: $(grep -c Traceback "$factory.log" || true)"
done | tee seen
grep -h "ERROR" wrong_type.log
expected=$'wrong_type: status 3, lines with Traceback: 0\nwrong_value: status 1, lines with Traceback: 1'
[[ "$(cat seen)" == "$expected" ]] || { echo "This has changed; expected:"; echo "$expected"; exit 1; }
