"""mlxmath from Python, in a minute or two on any machine: tune the bundled model, compare it with its base, grade."""

import json
from pathlib import Path

import mlxmath

# Problems with their solutions are dictionaries, as the lines of a .jsonl file.
problems = Path(mlxmath.__file__).parent / "demo" / "problems" / "train.jsonl"
rows = [json.loads(line) for line in problems.open()]
print(len(rows), rows[0])

# Tune the bundled model on them. The recipe says how; `verbose` shows the progress.
result = mlxmath.sft(rows, model="demo", recipe="demo", max_steps=300, verbose=True)
print(f"{result.ending} after {result.steps} steps, loss {result.loss:.3f}: {result.folder}")

# Ask it.
model = mlxmath.load("demo", result.folder)
print(mlxmath.generate(model, rows[0]["problem"]).text)

# Ask the base and the tuned model problems that neither has seen. `found.folder` holds a report with every answer.
found = mlxmath.evaluate("demo", adapters=result.folder, limit=40)
print(found.accuracy, found.comparisons[0]["difference"], found.folder)

# The grader by itself.
print(mlxmath.grade("So it is \\boxed{\\frac{3}{4}}.", "0.75").correct)
