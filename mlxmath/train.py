"""Fine-tune LoRA adapters: `python -m mlxmath.train`."""

from mlxmath.commands.train import main

if __name__ == "__main__":
    main(prog_name="python -m mlxmath.train")
