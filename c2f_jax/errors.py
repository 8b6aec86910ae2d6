"""What ends a program in one line: mistakes that are the user's to mend, and stops that were asked for."""


class UserError(Exception):
    """A mistake in a setting, a path or a file. Its message is one line that names the thing and the remedy."""


class Interrupted(Exception):
    """A run stopped because a signal asked for it, and everything is saved. Its message says where it stands.

    Attributes:
        signal: the signal's number.
    """

    def __init__(self, signal: int, message: str):
        super().__init__(message)
        self.signal = signal
