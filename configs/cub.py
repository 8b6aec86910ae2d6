"""CUB-200-2011, ResNet-50 with ImageNet weights, Coarse2Fine: two stages, the second look taught where to look.

python launch.py --config configs/cub.py                                             # fetches CUB-200-2011 (1.1 GB)
python launch.py --config configs/cub.py --config.dataset.path=CUB_200_2011.tgz      # or the folder it unpacks to

First looks of 448 px at photos of 512 px, second looks of 256 px at squares of the size of a bird's head. The first
look thus has all the detail that CUB's photos have, and the second one magnifies; where the settings were measured it
had twice the first one's detail, as with --config.model.view_size=224 --config.region.view_size=224. Stages,
region, losses, views and optimiser are those of configs/cub50_taught.py, settled by short runs at a reduced size: 50
classes, views of 128 px, EfficientNet-Lite0 (docs/findings.md, "Birds"). Backbone, sizes and the number of
epochs are not measured, and no full run has been made yet, so neither its time nor its accuracy is known.

Hardware: one GPU or TPU host with 24 GB or more (by the count of docs/reproduce.md a step's gradient keeps 14 GiB;
with less, --config.train.accumulate=2), and 8 GB of the host's memory for the table that teaches, by count. The
weights are fetched from the Hugging Face hub once; without a network give a safetensors file by
--config.model.pretrained=FILE.
"""

import ml_collections

from configs import cub50_taught


def get_config() -> ml_collections.ConfigDict:
    """Overrides of configs/cub50_taught.py."""
    config = cub50_taught.get_config()
    config.dataset.raw_size = 512
    # All 5,994 photos, as WS-DAN; while choosing settings set a tenth aside: --config.dataset.validation_fraction=0.1.
    config.dataset.validation_fraction = 0.0
    # torchvision's weights need torchvision's input.
    config.augment.mean = (123.675, 116.28, 103.53)
    config.augment.std = (58.395, 57.12, 57.375)
    config.model.backbone = "resnet50"
    config.model.pretrained = "hf://timm/resnet50.tv_in1k@78f3ecfdb38e06d9b8397f662e7ab8fee96026fa"
    config.model.output_stride = 0
    config.model.view_size = 448
    config.model.num_maps = 32
    config.region.view_size = 256  # there 128 px for 154 of the photo, here for 205
    config.region.cell_offset = 0.0  # not known of these weights
    config.stages.coarse_epochs = 11.0  # a seventh of all, as there
    config.stages.fine_epochs = 69.0
    config.train.eval_every_epochs = 5.0
    return config
