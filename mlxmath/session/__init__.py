"""A run, from its settings to its end. `train`, `dpo`, `reward-model` and `grpo` all tell the same story:

    session = Session(resolved, ranks, read)         opening.py: device, folder, data (material.py, prompts.py), base
    adapters = add_adapters(session)                 opening.py: what trains
    outcome = train(session, adapters, gradients_of, course_of)     training.py: from the first step to the last file

A command supplies how its data are read, its loss (`gradients_of`), and its course: which windows make its steps, and
how they are shown (course.py for rows, rollouts.py for drawn completions). The loop itself is `mlxmath.training.fit`.
"""

from mlxmath.runtime.blas import preload

preload()
