"""Stanford Cars, 196 models: the settings of configs/cub_one_stage.py; WS-DAN's figures on it are of the same.

python launch.py --config configs/stanford_cars.py --config.dataset.path=DIR

Its publisher's addresses are dead: DIR holds what others have kept, in either layout (docs/data.md). No run has been
made yet.
"""

import ml_collections

from configs import cub_one_stage


def get_config() -> ml_collections.ConfigDict:
    """Overrides of configs/cub_one_stage.py."""
    config = cub_one_stage.get_config()
    config.dataset.name = "stanford_cars"
    return config
