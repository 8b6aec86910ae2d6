"""Devices: one mesh, shardings and two back ends for the same step; the only file that asks for devices.

"jit" (the default) sees the global batch, sharded over the mesh's "data" axis; batch statistics are those of the
global batch. "pmap" runs the step once per device with an axis name, over which batch statistics, gradients and
attended features are combined: the same numbers.
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


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """`devices` (default: all of all processes) along "data"; "model" has size 1."""
    devices = jax.devices() if devices is None else devices
    axis_types = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((len(devices), 1), ("data", "model"), axis_types=axis_types, devices=devices)


def device_count() -> int:
    """How many devices all processes have together."""
    return jax.device_count()


def device_kind() -> str:
    """What the devices are."""
    return jax.devices()[0].device_kind


def replicated(mesh: Mesh) -> NamedSharding:
    """Of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The same arrays on every device of the mesh; those on the host are the same in every process."""
    sharding = replicated(mesh)

    def put(value: Any) -> jax.Array:
        if isinstance(value, jax.Array):
            return jax.device_put(value, sharding)
        value = np.asarray(value)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(put, tree)


def on_mesh(tree: Any, mesh: Mesh) -> Any:
    """Shapes and dtypes -> the same, replicated over the mesh: what a checkpoint is restored to, whoever saved it."""
    sharding = replicated(mesh)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


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
    """This process's part [b, ...] of a batch -> global arrays [B, ...], sharded over "data"."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
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
    """One program over the mesh; the state is replicated, the batch sharded."""

    mesh: Mesh
    axis_name: None = None

    def put_state(self, state: Any) -> Any:
        """A state on any device -> replicated over the mesh."""
        return replicate(state, self.mesh)

    def get_state(self, state: Any) -> Any:
        """The state as global arrays."""
        return state

    def put_batch(self, batch: Batch) -> Batch:
        """Host arrays [b, ...] -> global arrays [B, ...]."""
        return shard_batch(batch, self.mesh)

    def compile(self, step: Step) -> Step:
        """Compiles; the old state's memory is given to the new one."""

        def told_of_the_mesh(state: Any, batch: Batch) -> tuple[Any, dict[str, jax.Array]]:
            # So that large crops, taken in turn on CPU, are so on each device apart, not gathered first.
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                return step(state, batch)

        return jax.jit(told_of_the_mesh, donate_argnums=0, out_shardings=replicated(self.mesh))


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
