"""TFDS builders of our own; TensorFlow is not needed, neither for preparing nor for reading."""
