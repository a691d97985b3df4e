"""Answer a prompt: `python -m mlxmath.infer`."""

from mlxmath.commands.infer import main

if __name__ == "__main__":
    main(prog_name="python -m mlxmath.infer")
