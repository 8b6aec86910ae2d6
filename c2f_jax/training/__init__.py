"""Losses, stages, the train state and the loop that takes it from start to end."""
