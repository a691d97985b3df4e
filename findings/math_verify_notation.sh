#!/usr/bin/env bash
# math-verify 0.9.0 misreads notations of school mathematics in silence: a lg is dropped, a sum with dots is its first
# term, i is a variable, and two tiny numbers that differ by a factor of four million are the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet math-verify==0.9.0
cat > "$folder/show.py" <<'PYTHON'
from math_verify import parse, verify

def same(gold, answer):
    return verify(parse(f"${gold}$"), parse(f"${answer}$"))

seen = {
    r"\lg 1000 is 3": same(r"\lg 1000", "3"),
    r"\lg 1000 is 1000": same(r"\lg 1000", "1000"),
    r"1+2+\cdots+n is 1": same(r"1+2+\cdots+n", "1"),
    "i^2 is -1": same("i^2", "-1"),
    "1/2004! is 1/2006!": same(r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
}
for what, verdict in seen.items():
    print(f"{what}: {verdict}")
assert list(seen.values()) == [False, True, True, False, True], "math_verify has changed"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
