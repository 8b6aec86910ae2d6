"""Every field there is, with its unit and where its value comes from. Other configs override only.

Origins: *C2F* the abstract of Coarse2Fine (arXiv 1909.02680); *WS-DAN* its ancestor's code (arXiv 1901.09891); *ours*.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The defaults."""
    config = ml_collections.ConfigDict()

    # baseline: average pooling and a linear layer; attention: coarse stage only; wsdan: its three views in one stage;
    # coarse2fine: coarse stage, then fine stage at the learned region; random_box: its control, fine stage at random
    # boxes, tests at the untrained region.
    config.method = "coarse2fine"
    config.seed = 0  # of initialisation, data order and augmentation

    # The folder of another run, finished or broken, whose parameters this one begins with, perhaps for other classes,
    # stages or learning rates. What does not fit, such as the head for other classes, is new. It goes before
    # model.pretrained; empty: none.
    config.init_from = ""

    config.dataset = dataset = ml_collections.ConfigDict()
    # Drawn; or photos: folder, your own; tfds:NAME, prepared by TFDS; or published: cub200_2011, deep_pcb,
    # fgvc_aircraft, inat2021, inat2021_mini, nabirds, oxford_iiit_pet, stanford_cars, stanford_dogs.
    dataset.name = "paper_birds"
    # Published: an archive, its folder or a folder of archives, empty: fetched; folder: a tree or a table; tfds:NAME:
    # its data_dir, empty: TFDS's own.
    dataset.path = ""
    # What is called how in the data, with commas between: label=family (fgvc_aircraft); tfds:NAME: also image=...,
    # box=..., train=..., validation=..., test=...; empty: as it is usual (docs/data.md).
    dataset.fields = ""
    dataset.cache_dir = "~/.cache/c2f_jax"  # where prepared data go; never beside the photos
    dataset.unreadable = "skip"  # image files that cannot be read: listed once and skipped, or "fail"
    # folder: a regular expression searched in the paths; photos with the same first group are on one side of a split.
    dataset.group_by = ""
    dataset.shots = 0  # training images of each class, always the same ones; 0: all there are
    dataset.class_balanced = False  # draw training images from each class equally often (an epoch stays as long)
    dataset.raw_size = 512  # pixels, the side R of the square raw images that views are cut from (WS-DAN)
    dataset.memory_mib = 2048  # host memory for photos kept decoded, MiB: training ones first, then validation ones
    dataset.validation_fraction = 0.1  # share of the training part set aside; 0 trains on everything
    dataset.train_size = ml_collections.config_dict.placeholder(int)  # paper_birds: how many to draw; None: 4096
    dataset.test_size = ml_collections.config_dict.placeholder(int)  # the same for the test part; None: 1024

    config.augment = augment = ml_collections.ConfigDict()
    # Whether a raw image is a square window of the photo, whose shorter side is scaled to R; otherwise all of it,
    # squeezed to R x R (WS-DAN).
    augment.keep_aspect = False
    augment.min_side = 0.875  # side of the random coarse box, U(min_side, max_side) of the image (WS-DAN's 448 of 512)
    augment.max_side = 0.875  # the other end of it
    augment.test_side = 0.875  # side of the central coarse box in evaluation and prediction (WS-DAN's 448 of 512)
    augment.flip = True  # mirror half of the views (WS-DAN)
    augment.flip_vertical = False  # turn half of them upside down: for photos without an up, as boards or leaves
    augment.brightness = 32 / 255  # shift, fraction of the range (WS-DAN)
    augment.saturation = (0.5, 1.5)  # factor (WS-DAN)
    augment.erase = 0.0  # probability that a rectangle of a training view takes one colour (random erasing)
    # Alpha of the share that a training photo keeps when it is averaged with another (mixup), or a rectangle of another
    # is pasted into it (cutmix): their labels count by share. 0 for never; with both, either by chance.
    augment.mixup = 0.0
    augment.cutmix = 0.0  # as mixup
    # Grey levels; input is (pixel - mean) / std. None: those that the weights it begins with were trained with
    # (docs/backbones.md); from scratch 127.5, for input in [-1, 1] (WS-DAN).
    augment.mean = None
    augment.std = None  # as the mean

    config.model = model = ml_collections.ConfigDict()
    model.backbone = "resnet50"
    # Published weights of the backbone (docs/backbones.md), by timm's, torchvision's, transformers' or their authors'
    # names: a safetensors file, or hf://owner/name[@revision] of the Hugging Face hub; empty: from scratch.
    model.pretrained = ""
    # Pixels of the view per feature: 32, 16 (one reduction less), 14 or 16 (a patch), 8; 0: the backbone's own.
    model.output_stride = 0
    model.view_size = 448  # pixels, the side S of what the network sees (WS-DAN)
    model.num_maps = 32  # M (WS-DAN)
    model.attention_init = "orthogonal"  # (C2F), or lecun_normal
    model.feature_channels = 0  # project the features to this many channels before pooling; 0 keeps them (ours)
    model.feature_scale = 100.0  # s in logits = W(s f) + b (WS-DAN)
    # Rate of stochastic depth in the last block (EfficientNet-Lite, ConvNeXt, ViT); it rises from 0 in the first.
    model.drop_path = 0.0
    # Share of the backbone's last channels, one and those most like it, that each training view goes without; 0: none
    # (Ding et al. 2021, Channel DropBlock, where 0.05 is dropped in the middle of the backbone).
    model.channel_drop = 0.0
    model.remat = False  # keep no block's inside for the gradient, but compute it again: less memory, more time
    model.dtype = "float32"  # compute dtype: float32, bfloat16, or float64 (for checks)

    config.region = region = ml_collections.ConfigDict()
    # How far what teaches the region reaches, second looks through their box (C2F: a differentiable path) or, with a
    # region.side, region.teach: none, mapping (nothing below it), or all.
    region.box_gradient = "all"
    region.box_gradient_scale = 0.1  # factor on what goes through the box, and by "all" below the mapping (ours)
    region.min_side = 0.3  # limits of the box's sides, learned or random, fraction of the coarse view (ours)
    region.max_side = 1.0  # the other end of it
    region.kappa = 3.0**0.5  # half sides in standard deviations at the start; sqrt(3): exact for a uniform block (ours)
    region.floor = 0.0  # share of the mean map's maximum that counts as background, not as region (ours)
    region.background = 0.0  # share of its mean that does: the larger of the two (ours)
    # How far right and down of what it shows a cell of the backbone's maps lies, in cells (benchmarks/geometry.py).
    region.cell_offset = 0.0
    # Side of the second look, a square at the likeliest place, fraction of the raw image; 0: a box as large as the
    # attention is wide, of which alone kappa, floor, background and the limits of its sides tell (ours).
    region.side = 0.0
    region.view_size = 0  # pixels along each side of the second look; 0: as many as the first (ours)
    # Weight of what teaches the region of coarse2fine: in the coarse stage, where the weights are not new, a table of
    # what each place of a training photo tells of its label; in the fine stage second looks. Needs region.side (ours).
    region.teach = 0.0

    config.loss = loss = ml_collections.ConfigDict()
    loss.center_weight = 1.0  # lambda (WS-DAN)
    loss.center_rate = 0.05  # beta (WS-DAN)
    # A third view in the fine stage of coarse2fine and random_box: the coarse one without what a map attends to
    # (WS-DAN, which always has it).
    loss.drop_view = False

    loss.label_smoothing = 0.0  # share of each target that all classes have in equal parts

    config.stages = stages = ml_collections.ConfigDict()
    stages.coarse_epochs = 20.0  # the only stage of baseline, attention and wsdan (ours)
    stages.fine_epochs = 20.0  # of coarse2fine and random_box (ours)

    config.optimizer = optimizer = ml_collections.ConfigDict()
    optimizer.name = "sgd"  # Nesterov momentum, or adamw
    optimizer.learning_rate = 1e-3  # at the peak, of the backbone (WS-DAN)
    optimizer.head_factor = 1.0  # factor on it: attention, projection, classifier
    optimizer.region_factor = 0.1  # factor on it: inverse mapping (ours: a guard against drift)
    optimizer.fine_factor = 1.0  # factor on all of it in the fine stage (ours)
    optimizer.momentum = 0.9  # (WS-DAN)
    optimizer.weight_decay = 1e-5  # (WS-DAN)
    optimizer.clip_norm = 0.0  # on the gradient's global norm; 0 for none (WS-DAN)
    # Factor on the backbone's rate for each layer from its own to the head; 1 for the same everywhere.
    optimizer.layer_decay = 1.0
    # Parameters in whose path ("backbone/layer1_0/conv1/kernel") this regular expression is found stay as they are, and
    # so do running statistics; empty for none, ^backbone/ for the whole backbone.
    optimizer.freeze = ""
    optimizer.schedule = "cosine"  # to 0 at its end, or exponential
    optimizer.restart = True  # the schedule starts again with the fine stage; or else one goes over both stages
    optimizer.warmup_epochs = 0.0  # linear rise at the schedule's start
    optimizer.decay_rate = 0.9  # exponential: factor (WS-DAN)
    optimizer.decay_epochs = 2.0  # exponential: every so many epochs (WS-DAN)

    config.train = train = ml_collections.ConfigDict()
    train.batch_size = 12  # of all devices together (WS-DAN)
    train.accumulate = 1  # compute the batch in so many parts, one after the other, to save memory (batch norm by part)
    # Also keep exponential moving averages of what is learned, with which the run then answers; they keep this much of
    # themselves at each step (0.999 or so). 0 for none.
    train.ema_decay = 0.0
    train.eval_batch_size = 64  # rounded up to what the devices divide
    train.eval_every_epochs = 1.0  # on the validation part; 0: never
    train.log_every_steps = 50  # a line of metrics.jsonl
    train.checkpoint_every_steps = 500  # and at the stages' ends
    train.tensorboard = False  # also write the log as files that TensorBoard reads

    # Compiled programs, for the next start; empty: none. The variable JAX_COMPILATION_CACHE_DIR goes first.
    config.compilation_cache = "~/.cache/c2f_jax/compiled"

    config.parallel = parallel = ml_collections.ConfigDict()
    parallel.backend = "jit"  # or pmap
    # Over so many devices the head's weights, the centres and the optimiser's state of them are divided, for thousands
    # of classes (jit); 1: each device holds them whole.
    parallel.model = 1

    return config
