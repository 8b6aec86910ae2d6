"""The one kind of error that is the user's to mend."""


class UserError(Exception):
    """A mistake in a setting, a path or a file. Its message is one line that names the thing and the remedy."""
