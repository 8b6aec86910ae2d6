"""The shipped paper_birds config, shrunk until a run takes seconds."""

from configs import paper_birds


def tiny_config(**overrides):
    """20 steps of 8 images (10 coarse, 10 fine) on 32 px views; `overrides` are `section__field=value`."""
    config = paper_birds.get_config()
    config.dataset.train_size = 89
    config.dataset.test_size = 21
    config.model.view_size = 32
    config.model.num_maps = 4
    config.region.side = config.region.teach = 0.0  # a box that may change its size, unlike the shipped one
    config.region.min_side, config.region.max_side, config.region.view_size = 0.36, 0.48, 0
    config.stages.coarse_epochs = 1.0
    config.stages.fine_epochs = 1.0
    config.train.batch_size = 8
    config.train.eval_batch_size = 8
    config.train.eval_every_epochs = 0.5
    config.train.log_every_steps = 4
    config.train.checkpoint_every_steps = 3
    for name, value in overrides.items():
        *groups, field = name.split("__")
        group = config
        for part in groups:
            group = group[part]
        group[field] = value
    return config
