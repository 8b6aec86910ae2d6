"""Fine-grained image classification by Coarse2Fine: look once, find the place, look again.

Nothing is imported here, so that `import c2f_jax.kernels` needs JAX alone.
"""

__version__ = "0.1.0"
