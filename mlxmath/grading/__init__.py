"""Was the answer right? Pure Python, usable by itself: `from mlxmath.grading import grade`."""

from mlxmath.grading.grade import Grade, grade

__all__ = ["Grade", "grade"]
