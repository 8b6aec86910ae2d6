"""Which machine this is, and the two ceilings that it has: bytes copied and bfloat16 operations a second."""

import os
import platform
import statistics
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks import timing
from benchmarks.accelerator.common import Line, Setting, Unit, in_turn, number, one_line

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "torch", "triton")


def units(setting: Setting) -> dict[str, Unit]:
    """One: the line that every other one is read with."""
    return {"machine": lambda: machine(setting)}


def machine(setting: Setting) -> Iterator[Line]:
    """Device, driver and versions; and the ceilings, or why they are not known."""
    import jax

    device = jax.devices()[0]
    line = {
        "platform": device.platform,
        "device": device.device_kind,
        "device_count": jax.device_count(),
        "driver": driver(device),
        "memory_gib": number((device.memory_stats() or {}).get("bytes_limit", 0) / 2**30) or None,
        "host_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": {"python": platform.python_version(), **{name: of_package(name) for name in PACKAGES}},
        "torch": torch_state(device.platform),
        "matmul_precision": jax.config.jax_default_matmul_precision or "the platform's default",
    }
    try:
        line |= ceilings(setting.rehearse)
    except Exception as error:  # without ceilings there are no shares and no floors; there still are times
        line["error"] = one_line(error)
    yield line


def of_package(name: str) -> str | None:
    """Its version, None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def driver(device: Any) -> str | None:
    """NVIDIA's by its own tool; other platforms by what their runtime calls itself."""
    if device.platform == "gpu":
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
            return done.stdout.split("\n")[0].strip() or None
        except (OSError, subprocess.TimeoutExpired):
            return None
    return str(device.client.platform_version).splitlines()[0]


def torch_state(platform_name: str) -> str:
    """Whether PyTorch can be compared with here."""
    try:
        import torch
    except Exception as error:  # also a PyTorch that is there and cannot be loaded
        return f"not to be had: {one_line(error)}"
    if platform_name == "gpu" and not torch.cuda.is_available():
        return f"{torch.__version__} sees no GPU; nothing is compared with it"
    return f"{torch.__version__}, CUDA {torch.version.cuda}" if platform_name == "gpu" else torch.__version__


def ceilings(rehearse: bool) -> Line:
    """By a large copy, counting bytes read and written, and a large product of random bfloat16 matrices."""
    import jax
    import jax.numpy as jnp

    side, numbers = (512, 1 << 20) if rehearse else (8192, 1 << 29)
    keys = jax.random.split(jax.random.key(0), 2)
    left, right = (jax.random.normal(key, (side, side), jnp.bfloat16) for key in keys)
    values = jnp.arange(numbers, dtype=jnp.float32)
    # One is added so that there is something to do: an unchanged argument would be handed back.
    copy, product = jax.jit(lambda x: x + 1.0), jax.jit(jnp.matmul)
    works = {
        "copy": timing.Work(lambda: copy(values), jax.block_until_ready),
        "product": timing.Work(lambda: product(left, right), jax.block_until_ready),
    }
    seconds = {name: statistics.median(times) / 1000.0 for name, times in in_turn(works, 7).items()}
    return {
        "copy_bytes_per_second": number(2 * values.nbytes / seconds["copy"]),
        "copy_mib": values.nbytes >> 20,
        "bf16_operations_per_second": number(2 * side**3 / seconds["product"]),
        "product_side": side,
    }
