"""How much memory and time does converting a large .bin take? Against a plain copy and against torch.

    python benchmarks/bench_convert.py [--gigabytes 1] [--folder DIR] [--repeat 3]

Needs torch, to make the file and for the comparison. Every run is a fresh process; the source is in the page cache for
all of them, and all fsync what they write. Memory is the highest resident set (VmHWM) less the resident set right after
the start of the interpreter, before mlxmath, numpy or torch is imported; the second column starts after the imports.
"""

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import command_line, machine, save_json

MAKE = """
import json, sys, torch
folder, layers = sys.argv[1], int(sys.argv[2])
hidden, inner, vocab = 2048, 5504, 32000
shapes = {"model.embed_tokens.weight": (vocab, hidden), "lm_head.weight": (vocab, hidden)}
shapes |= {"model.norm.weight": (hidden,)}
for i in range(layers):
    p = f"model.layers.{i}."
    shapes |= {p + f"self_attn.{x}_proj.weight": (hidden, hidden) for x in "qkvo"}
    shapes |= {p + f"mlp.{x}_proj.weight": (inner, hidden) for x in ("gate", "up")}
    shapes |= {p + "mlp.down_proj.weight": (hidden, inner)}
    shapes |= {p + f"{x}_layernorm.weight": (hidden,) for x in ("input", "post_attention")}
torch.manual_seed(0)
torch.save({k: torch.randn(s).half() for k, s in shapes.items()}, folder + "/pytorch_model.bin")
json.dump({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden,
           "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": 16,
           "num_key_value_heads": 16, "vocab_size": vocab, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
           "torch_dtype": "float16"}, open(folder + "/config.json", "w"))
open(folder + "/tokenizer.json", "w").write("{}")
"""
MEASURED = """
import json, sys, time
def field(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))
bare = field("VmRSS")
%s
imported = field("VmRSS")
started = time.perf_counter()
%s
seconds = time.perf_counter() - started
peak = field("VmHWM")
print(json.dumps({"seconds": seconds, "above_interpreter_bytes": peak - bare, "above_imports_bytes": peak - imported}))
"""
WAYS = {
    "mlxmath": (
        "from mlxmath.config.schema import ModelConfig\nfrom mlxmath.weights.convert import ensure_model",
        "ensure_model(ModelConfig(model=sys.argv[1], mlx_path=sys.argv[2]))",
    ),
    "mlxmath --dtype bfloat16": (
        "from mlxmath.config.schema import ModelConfig\nfrom mlxmath.weights.convert import ensure_model",
        "ensure_model(ModelConfig(model=sys.argv[1], mlx_path=sys.argv[2], dtype='bfloat16'))",
    ),
    "mlxmath --quantize 4": (
        "from mlxmath.config.schema import ModelConfig\nfrom mlxmath.weights.convert import ensure_model",
        "ensure_model(ModelConfig(model=sys.argv[1], mlx_path=sys.argv[2], quantize=4))",
    ),
    "torch.load, save_file": (
        "import os, torch\nfrom safetensors.torch import save_file",
        """os.makedirs(sys.argv[2])
save_file(torch.load(sys.argv[1] + "/pytorch_model.bin", map_location="cpu"), sys.argv[2] + "/model.safetensors")
descriptor = os.open(sys.argv[2] + "/model.safetensors", os.O_RDONLY); os.fsync(descriptor)""",
    ),
    "torch.load(mmap), save_file": (
        "import os, torch\nfrom safetensors.torch import save_file",
        """os.makedirs(sys.argv[2])
save_file(torch.load(sys.argv[1] + "/pytorch_model.bin", mmap=True), sys.argv[2] + "/model.safetensors")
descriptor = os.open(sys.argv[2] + "/model.safetensors", os.O_RDONLY); os.fsync(descriptor)""",
    ),
    "cp, fsync": (
        "import os, subprocess",
        """os.makedirs(sys.argv[2])
subprocess.run(["cp", "--reflink=never", sys.argv[1] + "/pytorch_model.bin", sys.argv[2]], check=True)
descriptor = os.open(sys.argv[2] + "/pytorch_model.bin", os.O_RDONLY); os.fsync(descriptor)""",
    ),
    "cp, fsync, hash of both": (
        "import hashlib, os, subprocess",
        """os.makedirs(sys.argv[2])
subprocess.run(["cp", "--reflink=never", sys.argv[1] + "/pytorch_model.bin", sys.argv[2]], check=True)
descriptor = os.open(sys.argv[2] + "/pytorch_model.bin", os.O_RDONLY); os.fsync(descriptor)
for folder in sys.argv[1:]:
    with open(folder + "/pytorch_model.bin", "rb") as file:
        hashlib.file_digest(file, "sha256")""",
    ),
}


def main() -> None:
    """Run, print a table, write the JSON."""
    parser = command_line(__doc__, "convert.json")
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, default=None, help="where to work; default: the temporary folder")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        source, target = Path(name, "source"), Path(name, "target")
        source.mkdir()
        layers = max(math.ceil((options.gigabytes * 5e8 - 2 * 32000 * 2048) / (4 * 2048**2 + 3 * 2048 * 5504)), 1)
        subprocess.run([sys.executable, "-c", MAKE, str(source), str(layers)], check=True)
        num_bytes = (source / "pytorch_model.bin").stat().st_size
        (source / "pytorch_model.bin").read_bytes()  # into the page cache
        rows = {}
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(options.repeat):
            for way, (imports, work) in WAYS.items():
                command = [sys.executable, "-c", MEASURED % (imports, work), str(source), str(target)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                runs[way].append(json.loads(done.stdout.splitlines()[-1]))
                shutil.rmtree(target)
                os.sync()
    copy = statistics.median(run["seconds"] for run in runs["cp, fsync"])
    print(f"{'':28} {'seconds':>8} {'x copy':>7} {'MB above interpreter':>21} {'MB above imports':>17}")
    for way, results in runs.items():
        seconds = statistics.median(run["seconds"] for run in results)
        above = max(run["above_interpreter_bytes"] for run in results)
        imports = max(run["above_imports_bytes"] for run in results)
        rows[way] = {
            "seconds_median": round(seconds, 3),
            "seconds": [round(run["seconds"], 3) for run in results],
            "times_copy": round(seconds / copy, 2),
            "peak_above_interpreter_bytes": int(above),
            "peak_above_imports_bytes": int(imports),
        }
        memory = ("", "") if way.startswith("cp") else (f"{above / 1e6:.0f}", f"{imports / 1e6:.0f}")
        print(f"{way:28} {seconds:8.2f} {seconds / copy:7.2f} {memory[0]:>21} {memory[1]:>17}")

    packages = ("mlx", "mlx-lm", "numpy", "safetensors", "torch")
    result = {
        "question": "peak memory and time of converting a float16 .bin",
        "bytes": num_bytes,
        "repeat": options.repeat,
        "machine": machine(packages),
        "results": rows,
    }
    save_json(options.out, result)


if __name__ == "__main__":
    main()
