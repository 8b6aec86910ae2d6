"""Your own photos, a folder per class or a table: a network that a laptop can train, and that learns where to look.

python launch.py --config configs/folder.py --config.dataset.path=PATH

PATH is a folder that holds <class>/..., or train/<class>/... with test/ and, if you like, val/ beside train/; or it is
a table of path and label (.csv, .tsv, .jsonl). Without a test part a fifth of each class is set aside; photos of one
group (--config.dataset.group_by, or a column `group`) stay together. docs/data.md says more. ImageNet weights are
fetched from the Hugging Face hub once; without a network give a safetensors file by --config.model.pretrained=FILE, or
train from scratch with --config.model.pretrained= (empty).

In tests the first look sees the middle square of a photo, 0.875 of its side. Where what matters lies at the ends of
long photos, --config.augment.keep_aspect=False squeezes the photo into that square, and --config.augment.test_side=1.0
takes all.

The second look is a square of 0.4 of that square's side, where labels and second looks have taught it to lie: as for
birds, where that gives 1.6 points more than the attention's own peak after as many epochs (after nearly as many minutes
1.0, not told apart), and for defects of a twentieth of the side, which are found by it (configs/deep_pcb.py;
docs/findings.md). For what is as small, --config.region.side=0.25. A box as large as the attention is wide, which
nothing teaches, has configs/cub50_lite0.py.
"""

import ml_collections

from configs import cub50_taught


def get_config() -> ml_collections.ConfigDict:
    """The settings that suit CUB-200-2011 at this size, for other photos."""
    config = cub50_taught.get_config()
    config.dataset.name = "folder"
    config.model.pretrained = "hf://timm/tf_efficientnet_lite0.in1k"
    return config
