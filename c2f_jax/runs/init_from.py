"""`config.init_from`: a new run begins with the parameters of another one, finished or broken.

Taken is, module by module, what has the same shapes: the backbone in any case, the attention and the mapping where the
maps are as many (the mapping: with a `region.side` both or none), the head (with the classes' centres) where the
classes are the same. The rest is new.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from c2f_jax.errors import UserError
from c2f_jax.training.train_state import averages_of


class Start(NamedTuple):
    """What a new state begins with in place of its own values.

    Attributes:
        params: module -> parameters.
        batch_stats: {"coarse", "fine"} -> module -> running statistics.
        centers: [C, M * N], or None.
    """

    params: dict[str, Any]
    batch_stats: dict[str, dict[str, Any]]
    centers: Any = None

    def put_into(self, state: Any) -> Any:
        """`state` with these values, in its dtypes."""

        def cast(new: Any, old: Any) -> Any:
            # Copies, as in `init_variables`.
            return jax.tree.map(lambda n, o: jnp.array(n, o.dtype, copy=True), new, old)

        def merged(new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
            return {**old, **{name: cast(tree, old[name]) for name, tree in new.items()}}

        params = merged(self.params, state.params)
        stats = {name: merged(self.batch_stats.get(name, {}), old) for name, old in state.batch_stats.items()}
        return state.replace(
            params=params,
            batch_stats=stats,
            centers=state.centers if self.centers is None else cast(self.centers, state.centers),
            average=None if state.average is None else averages_of(params, stats),
        )


def choose(there: dict[str, Any], fresh: Any, *, same_classes: bool) -> tuple[Start, list[str], list[str]]:
    """(what is taken, names of modules taken, names of those that are new).

    Args:
        there: `params`, `batch_stats` and perhaps `centers` of the other run.
        fresh: the new run's state, or its shapes.
        same_classes: whether both have the same classes in the same order.

    Raises:
        UserError: if the backbones differ.
    """

    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        return {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}

    taken = [
        name
        for name, params in fresh.params.items()
        if shapes(params) == shapes(there["params"].get(name)) and (name != "head" or same_classes)
    ]
    if "backbone" not in taken:
        raise UserError("its backbone has other parameters")
    stats = {
        view: {name: there["batch_stats"][view][name] for name in modules if name in taken}
        for view, modules in fresh.batch_stats.items()
    }
    centers = there.get("centers") if "head" in taken else None
    if centers is not None and (fresh.centers is None or centers.shape != fresh.centers.shape):
        centers = None
    start = Start({name: there["params"][name] for name in taken}, stats, centers)
    return start, sorted(taken), sorted(set(fresh.params) - set(taken))


def told(workdir: Any, step: int, taken: Sequence[str], new: Sequence[str], classes: tuple[int, int]) -> str:
    """The line that says what was taken. classes: how many there, and here."""
    why = f" ({classes[0]} classes there, {classes[1]} here)" if "head" in new and classes[0] != classes[1] else ""
    why = why or (" (other classes)" if "head" in new else "")
    return f"from checkpoint {step} of {workdir}: {', '.join(taken)}; new: {', '.join(new) or 'nothing'}{why}"
