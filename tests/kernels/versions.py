"""What is called otherwise in the oldest jax that the kernels run on."""

import jax


def x64():
    """64-bit types, inside."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64()


def around(mesh):
    """The mesh that programs traced inside are told of."""
    return jax.set_mesh(mesh) if hasattr(jax, "set_mesh") else jax.sharding.use_mesh(mesh)
