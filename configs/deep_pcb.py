"""DeepPCB, six kinds of small defects on circuit boards: the settings of configs/cub50_lite0.py, all of each photo.

python launch.py --config configs/deep_pcb.py --config.model.pretrained=FILE          # fetches DeepPCB (0.1 GB)

FILE: ImageNet weights of EfficientNet-Lite0 as safetensors under timm's names. No run has been made yet.
"""

import ml_collections

from configs import cub50_lite0


def get_config() -> ml_collections.ConfigDict:
    """Overrides of configs/cub50_lite0.py."""
    config = cub50_lite0.get_config()
    config.dataset.name = "deep_pcb"
    config.augment.min_side = 1.0  # a defect may lie at the edge
    config.augment.test_side = 1.0
    config.dataset.raw_size = 640  # its photos'
    config.model.pretrained = "hf://timm/tf_efficientnet_lite0.in1k"
    return config
