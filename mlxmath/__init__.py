"""Fine-tune language models for mathematics with MLX: on Apple Silicon, CUDA or the CPU."""

__version__ = "0.1.0"
