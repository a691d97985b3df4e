"""Was the answer right, and was it reached soundly? Pure Python, usable by itself, without a model.

`from mlxmath.grading import grade, faithfulness, doubt`
"""

from mlxmath.grading.doubt import Doubt, doubt
from mlxmath.grading.faithfulness import Faithfulness, faithfulness
from mlxmath.grading.grade import Form, Grade, cluster, equal, form, grade, grade_many

__all__ = [
    "Doubt",
    "Faithfulness",
    "Form",
    "Grade",
    "cluster",
    "doubt",
    "equal",
    "faithfulness",
    "form",
    "grade",
    "grade_many",
]
