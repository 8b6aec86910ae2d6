"""The pure step: augmentation, losses, stages, optimiser and the train state."""
