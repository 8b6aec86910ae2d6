"""Where examples come from and how they become batches; on the host, without JAX."""
