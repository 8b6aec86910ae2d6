"""Stanford Dogs, 120 breeds: the settings of configs/cub_one_stage.py; WS-DAN's figures on it are of the same.

python launch.py --config configs/stanford_dogs.py                                   # fetches it (0.8 GB)

Its test photos are in ImageNet's training part: ImageNet weights have seen them. No run has been made yet.
"""

import ml_collections

from configs import cub_one_stage


def get_config() -> ml_collections.ConfigDict:
    """Overrides of configs/cub_one_stage.py."""
    config = cub_one_stage.get_config()
    config.dataset.name = "stanford_dogs"
    return config
