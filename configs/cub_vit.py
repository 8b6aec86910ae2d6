"""CUB-200-2011 with DINOv2's vision transformer (ViT-B/14 with registers): 448 px views of 512 px images, bfloat16.

python launch.py --config configs/cub_vit.py                                         # fetches CUB-200-2011 (1.1 GB)
python launch.py --config configs/cub_vit.py --config.dataset.path=CUB_200_2011.tgz  # or the folder it unpacks to

Hardware: one GPU. The weights (Apache-2.0) are fetched from the Hugging Face hub once; without a network give a
safetensors file by --config.model.pretrained=FILE. Mean and deviation of the input come with them. No full run has been
made yet: rates and lengths are those at which such networks are usually fine-tuned.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """Overrides of the defaults."""
    config = default.get_config()
    config.dataset.name = "cub200_2011"
    config.augment.keep_aspect = True
    config.augment.brightness = 0.0
    config.augment.saturation = (1.0, 1.0)
    config.model.backbone = "vit_base_patch14_reg4_dinov2"
    config.model.pretrained = "hf://timm/vit_base_patch14_reg4_dinov2.lvd142m"
    config.model.view_size = 448  # 32 x 32 patches
    config.model.feature_scale = 20.0
    config.model.drop_path = 0.1
    config.model.dtype = "bfloat16"
    config.model.remat = True  # the gradient of three looks keeps 6.5 GiB in place of 64 (docs/backbones.md)
    # As in configs/cub_one_stage.py.
    config.region.box_gradient = "none"
    config.region.background = 1.0
    config.region.kappa = 2.9
    config.loss.drop_view = True
    config.loss.label_smoothing = 0.1
    config.stages.coarse_epochs = 0.0
    config.stages.fine_epochs = 30.0
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 5e-5
    config.optimizer.layer_decay = 0.75
    config.optimizer.head_factor = 20.0
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 1.0
    config.optimizer.warmup_epochs = 1.0
    config.train.batch_size = 32
    config.train.ema_decay = 0.999
    return config
