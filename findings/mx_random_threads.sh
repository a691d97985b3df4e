#!/usr/bin/env bash
# mlx 0.32.4: `mx.random.seed` seeds the thread that calls it and no other. Whatever another thread draws (a server that generates in
# a thread of its own, answers drawn beside a training loop) comes of an unseeded generator, and differs from run to run although the
# program was seeded first. NumPy's and torch's global seeds reach all threads. A seed set in the thread itself counts.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'mlx[cpu]==0.32.4'
cat > "$folder/draw.py" <<'PYTHON'
import os
import threading

import mlx.core as mx

mx.set_default_device(mx.cpu)
mx.random.seed(7)
drawn = []


def draw(seed: int | None) -> None:
    mx.set_default_device(mx.cpu)
    if seed is not None:
        mx.random.seed(seed)
    drawn.append(mx.random.uniform(shape=(2,)).tolist())


draw(None)
for seed in (None, 7):
    thread = threading.Thread(target=draw, args=(seed,))
    thread.start()
    thread.join()
print(*drawn, sep=" | ", flush=True)
os._exit(0)
PYTHON
first=$("$folder/venv/bin/python" "$folder/draw.py")
second=$("$folder/venv/bin/python" "$folder/draw.py")
printf 'the seeded thread | another one | another one, seeded itself\n%s\n%s\n' "$first" "$second"
field() { cut -d'|' -f"$2" <<< "$1" | tr -d ' '; }
if [ "$(field "$first" 1)" != "$(field "$second" 1)" ] || [ "$(field "$first" 3)" != "$(field "$first" 1)" ] \
   || [ "$(field "$second" 3)" != "$(field "$second" 1)" ] || [ "$(field "$first" 2)" = "$(field "$second" 2)" ]; then
  echo "mlx has changed"
  exit 1
fi
