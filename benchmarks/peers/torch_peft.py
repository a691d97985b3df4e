"""torch + transformers + peft, in the type of the model folder: eager, SDPA attention, AdamW, global clipping.

Each effective batch is sorted by length before it is cut into micro-batches, as ours is; padding goes to the right and
its labels are -100, so no attention mask is needed and attention takes its faster causal path.

A job's `setting` may have `compile` (torch.compile, for any width), `bits` (weights as bitsandbytes' NF4), and `model`,
a folder to read in place of the job's.
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.peers.worker import EpochClock, Job, Result, main, proc_bytes, reset_rss_peak


def run(job: Job) -> Result:
    """Train and report."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(job["seed"])
    device = "cpu" if job["backend"] == "cpu" else "cuda"
    dtype = torch.float32 if device == "cpu" else getattr(torch, job["dtype"])
    setting = job["setting"]
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": "sdpa"}
    if setting.get("bits"):
        options |= _nf4(dtype)
    base = AutoModelForCausalLM.from_pretrained(setting.get("model", job["model"]), **options)
    if not setting.get("bits"):
        base = base.to(device)
    base.config.use_cache = False
    config = LoraConfig(
        r=job["rank"], lora_alpha=job["alpha"], target_modules=list(job["targets"]), lora_dropout=0.0, bias="none",
        task_type="CAUSAL_LM",
    )  # fmt: skip
    model = get_peft_model(base, config)
    model.train()
    if setting.get("compile"):
        model = torch.compile(model, dynamic=True)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=job["learning_rate"], weight_decay=0.0)

    def loss_sum(rows: list[dict[str, Any]]) -> Any:
        """Σ cross-entropy over the targets of a micro-batch, by the model's own loss."""
        width = max(len(row["tokens"]) for row in rows)
        inputs = torch.zeros((len(rows), width), dtype=torch.long)
        labels = torch.full((len(rows), width), -100, dtype=torch.long)
        for i, row in enumerate(rows):
            tokens = torch.tensor(row["tokens"])
            inputs[i, : len(tokens)] = tokens
            labels[i, row["num_prompt"] : len(tokens)] = tokens[row["num_prompt"] :]
        return model(input_ids=inputs.to(device), labels=labels.to(device), num_items_in_batch=1).loss

    def targets(rows: list[dict[str, Any]]) -> int:
        return sum(len(row["tokens"]) - row["num_prompt"] for row in rows)

    first = job["rows"][: job["first_batch"]]
    with torch.no_grad():
        loss = sum(loss_sum([row]).item() for row in first) / targets(first)
    start_bytes = proc_bytes("VmRSS")
    reset = reset_rss_peak()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    clock = EpochClock(job)
    clock.ends_s.clear()
    size, per_step = job["batch_size"], job["batch_size"] * job["grad_accumulation_steps"]
    shuffle = random.Random(job["seed"])
    num_targets = 0
    for _ in range(job["num_epochs"]):
        rows = shuffle.sample(job["rows"], len(job["rows"]))
        num_targets = 0
        for window in _batched(rows, per_step):
            window_targets = targets(window)
            num_targets += window_targets
            for micro in _batched(sorted(window, key=lambda row: len(row["tokens"])), size):
                (loss_sum(micro) / window_targets).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if device == "cuda":
                torch.cuda.synchronize()
            clock.step()
    peak = proc_bytes("VmHWM")
    notes = [f"{torch.get_num_threads()} threads"]
    if setting.get("bits"):
        notes.append(f"NF4 weights are others than MLX's, so the first batch's loss, {loss:.5f}, is not compared")
    result: Result = {} if setting.get("bits") else {"first_batch_loss": loss}
    result |= {
        "epoch_ends_s": clock.ends_s,
        "targets_per_epoch": num_targets,
        "peak_device_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
        "notes": notes,
    }
    if reset and peak is not None and start_bytes is not None and device == "cpu":
        result["rss_above_start_bytes"] = peak - start_bytes
    return result


def _nf4(dtype: Any) -> dict[str, Any]:
    """Options that load weights in 4 bits (Dettmers et al. 2023, arXiv:2305.14314); raises without bitsandbytes."""
    import bitsandbytes  # noqa: F401
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": config, "device_map": {"": 0}}


def _batched(rows: list[Any], size: int) -> Iterator[list[Any]]:
    """Consecutive lists of `size` rows, the last one shorter."""
    return (rows[i : i + size] for i in range(0, len(rows), size))


if __name__ == "__main__":
    main(run, ("torch", "transformers", "peft"))
