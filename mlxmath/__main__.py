"""`python -m mlxmath <command>`."""

from mlxmath.cli import main

if __name__ == "__main__":
    main(prog_name="mlxmath")
