"""mlxmath from Python, in a minute or two on any machine: tune the bundled model, compare it with its base, grade."""

import json
from pathlib import Path

import mlxmath

rows = [json.loads(line) for line in (Path(mlxmath.__file__).parent / "demo/problems/train.jsonl").open()]

result = mlxmath.sft(
    rows, model="demo", recipe="demo", max_steps=150, callback=lambda event: print(event["event"], event.get("step"))
)
print(f"{result.ending} after {result.steps} steps, loss {result.loss:.3f}: {result.folder}")

model = mlxmath.load("demo", result.folder)
print(mlxmath.generate(model, rows[0]["problem"]).text)

found = mlxmath.evaluate("demo", adapters=result.folder, limit=40)
print(found.accuracy, found.comparisons[0]["difference"])

print(mlxmath.grade("So it is \\boxed{\\frac{3}{4}}.", "0.75").correct)
