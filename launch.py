"""Trains, evaluates or predicts: python launch.py --config configs/paper_birds.py --workdir runs/paper_birds."""

import _signal as signal  # without what `signal` imports, in the midst of which Ctrl-C would be a traceback

if __name__ == "__main__":
    # Until `main` takes signals over, Ctrl-C simply ends the program.
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

from c2f_jax.__main__ import main

if __name__ == "__main__":
    main()
