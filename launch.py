"""Trains or evaluates: python launch.py --config configs/paper_birds.py --workdir runs/paper_birds --mode train."""

import sys

from c2f_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
