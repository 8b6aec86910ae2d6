"""FGVC-Aircraft, 100 variants: the settings of configs/cub_one_stage.py; WS-DAN's figures on it are of the same.

python launch.py --config configs/fgvc_aircraft.py                                        # fetches it (2.75 GB)
python launch.py --config configs/fgvc_aircraft.py --config.dataset.fields=label=family   # or manufacturer

No run has been made yet.
"""

import ml_collections

from configs import cub_one_stage


def get_config() -> ml_collections.ConfigDict:
    """Overrides of configs/cub_one_stage.py."""
    config = cub_one_stage.get_config()
    config.dataset.name = "fgvc_aircraft"
    return config
