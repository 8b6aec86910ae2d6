"""iNaturalist 2021, 10,000 species: 224 px views, and a head of 82 million weights in place of 655.

python launch.py --config configs/inat2021.py --config.dataset.path=DIR

DIR: what the lists and archives at github.com/visipedia/inat_comp/tree/master/2021 unpack to, or hold; empty: fetched,
42 + 8 GB, and 232 GB with --config.dataset.name=inat2021, which trains on all 2.7 million photos. No run has been made
yet, and nothing here was chosen by one.
"""

import ml_collections

from configs import cub_one_stage


def get_config() -> ml_collections.ConfigDict:
    """Overrides of configs/cub_one_stage.py."""
    config = cub_one_stage.get_config()
    config.dataset.name = "inat2021_mini"
    config.dataset.raw_size = 256
    config.model.view_size = 224
    config.model.feature_channels = 256  # before pooling: each class has 32 maps x so many weights
    config.optimizer.learning_rate = 1e-2  # for the larger batch
    config.stages.fine_epochs = 20.0
    config.train.batch_size = 128
    config.train.eval_every_epochs = 5.0
    return config
