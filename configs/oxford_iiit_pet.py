"""Oxford-IIIT Pet, 37 breeds: the settings of configs/cub_one_stage.py.

python launch.py --config configs/oxford_iiit_pet.py                                 # fetches it (0.8 GB)

No run has been made yet.
"""

import ml_collections

from configs import cub_one_stage


def get_config() -> ml_collections.ConfigDict:
    """Overrides of configs/cub_one_stage.py."""
    config = cub_one_stage.get_config()
    config.dataset.name = "oxford_iiit_pet"
    return config
