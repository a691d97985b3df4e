"""Was the answer right, and was it reached soundly? Pure Python, usable by itself, without a model.

`from mlxmath.grading import grade, faithfulness, doubt`
"""

from mlxmath.grading.grade import Grade, equal, grade, grade_many

__all__ = ["Grade", "equal", "grade", "grade_many"]
