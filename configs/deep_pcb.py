"""DeepPCB: six kinds of defects on circuit boards, each on 0.3 % of the photo: what a second look is for.

python launch.py --config configs/deep_pcb.py                                 # fetches DeepPCB (0.1 GB)
python launch.py --config configs/deep_pcb.py --config.dataset.path=DIR       # or its folder, or zip archive

The second look is a square of a quarter of the board's side, in most of its resolution; where it lies the first look
learns by a table that the labels make, then by second looks at several places (docs/method.md). Of the test boards 73 %
after 21 minutes on two CPU cores (72.8 ± 0.8, three seeds), 79 % after 36 with --config.stages.coarse_epochs=6
--config.stages.fine_epochs=4 (78.6 at both of two seeds); docs/findings.md has what one larger look of the same cost
does, which hangs on its seed.
"""

import ml_collections

from configs import cub50_lite0


def get_config() -> ml_collections.ConfigDict:
    """Overrides of configs/cub50_lite0.py."""
    config = cub50_lite0.get_config()
    config.dataset.name = "deep_pcb"
    config.dataset.raw_size = 640  # its photos'
    config.model.pretrained = "hf://timm/tf_efficientnet_lite0.in1k"
    config.model.view_size = 160  # a defect has 10 pixels in the first look
    config.augment.keep_aspect = False  # boards are square
    config.augment.min_side = 1.0  # a defect may lie at the edge
    config.augment.test_side = 1.0
    config.region.side = 0.25
    config.region.view_size = 112  # and 27 in the second
    config.region.teach = 2.0
    config.region.box_gradient = "all"  # what tells a defect from a conductor has to be learned below the attention
    config.region.box_gradient_scale = 1.0
    config.loss.drop_view = False
    # Second looks judge places well once the first has learned what there is to be found.
    config.stages.coarse_epochs = 3.0
    config.stages.fine_epochs = 2.0
    # By SGD at 5e-3 a thousand steps leave nearly all of this unlearned (docs/findings.md).
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 1e-2
    config.optimizer.clip_norm = 5.0
    config.optimizer.warmup_epochs = 0.1
    config.optimizer.region_factor = 1.0
    config.optimizer.restart = False
    config.train.eval_every_epochs = 0.5
    return config
