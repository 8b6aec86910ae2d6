"""Devices: one mesh, shardings and two back ends for the same step; the only file that asks for devices.

"jit" (the default) sees the global batch, sharded over all devices; batch statistics are those of the global batch.
What grows with the number of classes (the head's weights, the centres, and the optimiser's state of these weights) may
be sharded over the mesh's "model" axis, along the pooled features, so that any number of classes will do. "pmap" runs
the step once per device with an axis name, over which batch statistics, gradients and attended features are combined:
the same numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from c2f_jax.errors import UserError
from c2f_jax.runs import processes

Batch = dict[str, Any]
Step = Callable[[Any, Batch], tuple[Any, dict[str, jax.Array]]]

PMAP_AXIS = "device"


def make_mesh(devices: Sequence[jax.Device] | None = None, *, model: int = 1) -> Mesh:
    """`devices` (default: all of all processes), in rows of `model` along "model", the rows along "data"."""
    devices = jax.devices() if devices is None else devices
    axis_types = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((len(devices) // model, model), ("data", "model"), axis_types=axis_types, devices=devices)


def device_count() -> int:
    """How many devices all processes have together."""
    return jax.device_count()


def device_kind() -> str:
    """What the devices are."""
    return jax.devices()[0].device_kind


def replicated(mesh: Mesh) -> NamedSharding:
    """Of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def shardings(tree: Any, mesh: Mesh) -> Any:
    """Of each array of a state, or of a part of it that keeps its names: where it lies.

    `head/kernel` [M * N, C], its moments in the optimiser's state, and `centers` [C, M * N] are sharded over "model"
    along M * N; all else is on every device whole.

    Raises:
        UserError: if the axis does not divide M * N.
    """
    size = mesh.shape["model"]

    def of(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
        axis = 0 if names[-2:] == ["head", "kernel"] else 1 if names[-1:] == ["centers"] else None
        if axis is None:
            return replicated(mesh)
        if leaf.shape[axis] % size:
            raise UserError(f"parallel.model={size} does not divide the {leaf.shape[axis]} features of each class")
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "model"))

    return jax.tree_util.tree_map_with_path(of, tree)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The same arrays on the mesh, as `shardings` says; those on the host are the same in every process."""

    def put(value: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(value, jax.Array):
            return jax.device_put(value, sharding)
        value = np.asarray(value)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    arrays = jax.tree.map(lambda value: value if isinstance(value, jax.Array) else np.asarray(value), tree)
    return jax.tree.map(put, arrays, shardings(arrays, mesh))


def on_mesh(tree: Any, mesh: Mesh) -> Any:
    """Shapes and dtypes -> the same on the mesh, as `shardings` says: what a checkpoint is restored to, whoever saved
    it."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings(tree, mesh),
    )


def whole(leaf: Any) -> np.ndarray:
    """An array of a state, on the host: from this process's devices, which hold all of it between them."""
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)
    if leaf.is_fully_replicated:
        return np.asarray(leaf.addressable_data(0))
    found = np.empty(leaf.shape, leaf.dtype)
    for shard in leaf.addressable_shards:
        found[shard.index] = shard.data
    return found


class Agreement:
    """The largest of all processes' numbers, the same at the same call in all of them, and one call late.

    Late, so that nobody waits: the answer to the call before has long been computed. All processes have to call it
    equally often. With a single process it is the number itself.
    """

    def __init__(self, mesh: Mesh):
        self._mesh = mesh
        self._largest = jax.jit(jnp.max, out_shardings=replicated(mesh))
        self._earlier: jax.Array | None = None

    def __call__(self, number: int) -> int:
        if processes.count() == 1:
            return number
        numbers = {"all": np.full(jax.local_device_count(), number, np.int32)}
        earlier, self._earlier = self._earlier, self._largest(shard_batch(numbers, self._mesh)["all"])
        return 0 if earlier is None else int(earlier)


def shard_batch(batch: Batch, mesh: Mesh) -> Batch:
    """This process's part [b, ...] of a batch -> global arrays [B, ...], sharded over all devices."""
    sharding = NamedSharding(mesh, PartitionSpec(("data", "model")))
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


class Backend(Protocol):
    """How a step runs on the devices. The state keeps the back end's own form between steps."""

    axis_name: str | None

    def put_state(self, state: Any) -> Any: ...

    def get_state(self, state: Any) -> Any: ...

    def put_batch(self, batch: Batch) -> Batch: ...

    def compile(self, step: Step) -> Step: ...


@dataclass(frozen=True)
class JitBackend:
    """One program over the mesh; the batch is sharded, the state as `shardings` says."""

    mesh: Mesh
    axis_name: None = None

    def put_state(self, state: Any) -> Any:
        """A state on any device -> on the mesh."""
        return replicate(state, self.mesh)

    def get_state(self, state: Any) -> Any:
        """The state as global arrays."""
        return state

    def put_batch(self, batch: Batch) -> Batch:
        """Host arrays [b, ...] -> global arrays [B, ...]."""
        return shard_batch(batch, self.mesh)

    def compile(self, step: Step) -> Step:
        """Compiles when it is first called; the old state's memory is given to the new one."""

        program: Step | None = None

        def told_of_the_mesh(state: Any, batch: Batch) -> tuple[Any, dict[str, jax.Array]]:
            # So that large crops, taken in turn on CPU, are so on each device apart, not gathered first.
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                return step(state, batch)

        told_of_the_mesh.__name__ = getattr(step, "func", step).__name__  # in profiles and compilation caches

        def run(state: Any, batch: Batch) -> tuple[Any, dict[str, jax.Array]]:
            nonlocal program
            if program is None:
                places = shardings(state, self.mesh), replicated(self.mesh)
                program = jax.jit(told_of_the_mesh, donate_argnums=0, out_shardings=places)
            return program(state, batch)

        return run


@dataclass(frozen=True)
class PmapBackend:
    """The step once per device, arrays with a leading device axis."""

    mesh: Mesh
    axis_name: str = PMAP_AXIS

    def put_state(self, state: Any) -> Any:
        """A state on any device -> one copy per local device [D, ...]: a view on the host, which the next step spreads.

        Copies made here would all lie on one device first.
        """
        devices = jax.local_device_count()
        return jax.tree.map(lambda x: np.broadcast_to(x, (devices, *np.shape(x))), jax.device_get(state))

    def get_state(self, state: Any) -> Any:
        """The first copy, replicated over the mesh as evaluation and checkpoints want it."""
        return replicate(jax.device_get(jax.tree.map(_first_copy, state)), self.mesh)

    def put_batch(self, batch: Batch) -> Batch:
        """Host arrays [b, ...] -> [D, b / D, ...]."""
        devices = jax.local_device_count()
        return {name: value.reshape(devices, -1, *np.shape(value)[1:]) for name, value in batch.items()}

    def compile(self, step: Step) -> Step:
        """Compiles; of the metrics, equal on all devices, the first copy is returned."""
        mapped = jax.pmap(step, axis_name=self.axis_name, donate_argnums=0)

        def run(state: Any, batch: Batch) -> tuple[Any, dict[str, jax.Array]]:
            state, metrics = mapped(state, batch)
            return state, jax.tree.map(_first_copy, metrics)

        return run


def _first_copy(value: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """Of equal copies [D, ...], the first; without `value[0]`, which would be a program of its own on all devices."""
    return value[0] if isinstance(value, np.ndarray) else value.addressable_data(0)[0]


def make_backend(name: str, mesh: Mesh) -> Backend:
    """The back end called "jit" or "pmap".

    Raises:
        UserError: if there is no such back end.
    """
    backends: dict[str, Callable[[Mesh], Any]] = {"jit": JitBackend, "pmap": PmapBackend}
    if name not in backends:
        raise UserError(f"parallel.backend must be 'jit' or 'pmap', got {name!r}")
    return backends[name](mesh)


def check_model_axis(size: int, *, backend: str) -> None:
    """Raises UserError unless the devices of each process can be divided by the "model" axis, and run by jit."""
    field = f"parallel.model={size}"
    if size > 1 and backend != "jit":
        raise UserError(f"{field} is for parallel.backend=jit; got {backend}")
    if jax.local_device_count() % size:
        raise UserError(f"{field} does not divide the {jax.local_device_count()} devices of this process")


def fitting(batch_size: int) -> int:
    """`batch_size`, or the next larger that the devices divide: for batches that are filled up anyway."""
    devices = jax.device_count()
    return -(-batch_size // devices) * devices


def check_batch_size(name: str, batch_size: int) -> None:
    """Raises UserError unless the devices divide `batch_size` (a config field called `name`)."""
    devices = jax.device_count()
    if batch_size < 1 or batch_size % devices:
        nearest = max(devices, batch_size // devices * devices)
        raise UserError(
            f"{name}={batch_size} cannot be divided evenly over {devices} devices; try --config.{name}={nearest}"
        )
