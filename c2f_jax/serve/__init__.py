"""A run's model behind a local page and a JSON interface."""
