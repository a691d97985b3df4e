"""What SymPy imports only when it is called: a process that is to open no file has imported it before."""

from mlxmath.tools.names import words

MODULES = words(
    """
    unicodedata
    sympy.assumptions.wrapper sympy.combinatorics.free_groups sympy.combinatorics.generators
    sympy.combinatorics.graycode sympy.combinatorics.group_constructs sympy.combinatorics.named_groups
    sympy.combinatorics.partitions sympy.combinatorics.pc_groups sympy.combinatorics.perm_groups
    sympy.combinatorics.permutations sympy.combinatorics.polyhedron sympy.combinatorics.prufer
    sympy.combinatorics.subsets sympy.combinatorics.tensor_can sympy.combinatorics.util sympy.concrete.delta
    sympy.integrals.heurisch sympy.integrals.manualintegrate sympy.integrals.risch sympy.physics.matrices
    sympy.physics.units.definitions.dimension_definitions sympy.physics.units.definitions.unit_definitions
    sympy.physics.units.dimensions sympy.physics.units.prefixes sympy.physics.units.quantities
    sympy.physics.units.systems.length_weight_time sympy.physics.units.systems.mks
    sympy.physics.units.systems.mksa sympy.physics.units.systems.natural sympy.physics.units.systems.si
    sympy.physics.units.unitsystem sympy.physics.units.util sympy.sets.handlers.functions
    sympy.sets.handlers.issubset sympy.sets.setexpr sympy.tensor.tensor
"""
)
"""Found by running the programs in `tests/tools/programs.py`; a test runs them confined."""
