"""Feature extractors and the attention network on top of them, in flax.linen."""
