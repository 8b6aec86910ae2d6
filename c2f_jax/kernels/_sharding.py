"""Meshes with explicit axes, JAX's default now: the result's sharding is said, the compiler finds its way there."""

from collections.abc import Callable, Sequence

import jax
from jax.sharding import NamedSharding, PartitionSpec


def by_the_compiler(
    function: Callable[..., jax.Array], arrays: Sequence[jax.Array], axes: Sequence[Sequence[tuple[int, int]]]
) -> jax.Array:
    """function(*arrays); where explicit axes shard the arrays, its inside is left to the compiler.

    Args:
        function: from the arrays to one array.
        arrays: what it takes.
        axes: for each axis of the result the axes (array, axis) that it comes from: it is sharded as the first of
            these that is sharded, unless that mesh axis is taken.
    """
    if not hasattr(jax.sharding, "auto_axes"):  # before jax 0.7, where explicit axes were an experiment
        return function(*arrays)
    types = [jax.typeof(array).sharding for array in arrays]
    specs = [[*kind.spec, *[None] * (array.ndim - len(kind.spec))] for kind, array in zip(types, arrays, strict=True)]
    if all(entry is None for spec in specs for entry in spec):
        return function(*arrays)
    taken: set[str] = set()
    entries = []
    for sources in axes:
        entry = next((specs[i][j] for i, j in sources if specs[i][j] is not None), None)
        names = {entry} if isinstance(entry, str) else set(entry or ())
        entries.append(entry if not names & taken else None)
        taken |= names
    mesh = next(kind.mesh for kind, spec in zip(types, specs, strict=True) if any(entry is not None for entry in spec))
    return jax.sharding.auto_axes(function, out_sharding=NamedSharding(mesh, PartitionSpec(*entries)))(*arrays)
