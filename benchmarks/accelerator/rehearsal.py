"""Networks of fewer blocks, where what is rehearsed is the way through the programs: compiled in seconds."""

import functools

from c2f_jax.models import backbones, efficientnet_lite
from c2f_jax.models.resnet import Bottleneck, ResNet

RESNET_BLOCKS = (1, 1, 1, 1)
LITE0_STAGES = ((1, 16, 1, 1, 3), (6, 24, 1, 2, 5), (6, 40, 2, 2, 3))


def shorten_backbones() -> None:
    """For the rest of this process, ResNet-50 and EfficientNet-Lite0 have the blocks above, in PyTorch too."""
    _, strides = backbones._CONSTRUCTORS["resnet50"]
    shortened = functools.partial(ResNet, Bottleneck, block_counts=RESNET_BLOCKS)
    backbones._CONSTRUCTORS["resnet50"] = (shortened, strides)
    efficientnet_lite.LITE0_STAGES = LITE0_STAGES
    try:
        from benchmarks import torch_models
    except ImportError:
        return
    torch_models.LITE0_STAGES = LITE0_STAGES
    torch_models.resnet50 = functools.partial(torch_models.resnet50, RESNET_BLOCKS)
