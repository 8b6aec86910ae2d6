"""NABirds, 555 classes: the settings of configs/cub_one_stage.py for fewer epochs, as it has four times the photos.

python launch.py --config configs/nabirds.py --config.dataset.path=nabirds.tar.gz

The archive is given to those who accept its terms, at dl.allaboutbirds.org/nabirds. No run has been made yet.
"""

import ml_collections

from configs import cub_one_stage


def get_config() -> ml_collections.ConfigDict:
    """Overrides of configs/cub_one_stage.py."""
    config = cub_one_stage.get_config()
    config.dataset.name = "nabirds"
    config.stages.fine_epochs = 50.0
    return config
