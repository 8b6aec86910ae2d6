"""Your own photos on one GPU: DINOv2's small vision transformer at 448 px, in bfloat16, with averaged parameters.

python launch.py --config configs/folder_gpu.py --config.dataset.path=PATH

What PATH may be stands in configs/folder.py. The weights (Apache-2.0) are fetched from the Hugging Face hub once;
without a network give a safetensors file by --config.model.pretrained=FILE. The gradient keeps 2.3 GiB; where there are
32 GiB for it, --config.model.remat=False spares a fourth of the arithmetic; where memory is short,
--config.train.accumulate=4, or --config.model.view_size=224 with --config.dataset.raw_size=256 (docs/backbones.md,
"Memory"; computed, not measured on a GPU). A ConvNeXt instead: --config.model.backbone=convnext_tiny
--config.model.pretrained=hf://timm/convnext_tiny.fb_in22k --config.optimizer.layer_decay=0.8.

No full run has been made yet: rates and lengths are those at which such networks are usually fine-tuned.
"""

import ml_collections

from configs import cub_vit


def get_config() -> ml_collections.ConfigDict:
    """The settings of the vision transformer for birds, with a smaller one, for other photos."""
    config = cub_vit.get_config()
    config.dataset.name = "folder"
    config.augment.min_side = 0.75  # nothing is known of how large the object is
    config.augment.max_side = 1.0
    config.augment.test_side = 1.0
    config.augment.brightness = 32 / 255
    config.augment.saturation = (0.5, 1.5)
    config.model.backbone = "vit_small_patch14_reg4_dinov2"
    config.model.pretrained = "hf://timm/vit_small_patch14_reg4_dinov2.lvd142m"
    config.stages.fine_epochs = 20.0
    return config
