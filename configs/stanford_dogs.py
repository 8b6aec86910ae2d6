"""Stanford Dogs, 120 breeds: the settings of configs/cub.py; WS-DAN's figures on it are of the same.

python launch.py --config configs/stanford_dogs.py                                   # fetches it (0.8 GB)

Its test photos are in ImageNet's training part: ImageNet weights have seen them. No run has been made yet.
"""

import ml_collections

from configs import cub


def get_config() -> ml_collections.ConfigDict:
    """Overrides of configs/cub.py."""
    config = cub.get_config()
    config.dataset.name = "stanford_dogs"
    return config
