"""Oxford-IIIT Pet, 37 breeds: the settings of configs/cub.py.

python launch.py --config configs/oxford_iiit_pet.py                                 # fetches it (0.8 GB)

No run has been made yet.
"""

import ml_collections

from configs import cub


def get_config() -> ml_collections.ConfigDict:
    """Overrides of configs/cub.py."""
    config = cub.get_config()
    config.dataset.name = "oxford_iiit_pet"
    return config
