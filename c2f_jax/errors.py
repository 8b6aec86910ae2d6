"""What ends a program in one line: mistakes that are the user's to mend, and stops that were asked for."""

import re


def one_line(text: str) -> str:
    r"""Text for one line of a message, whatever names of files and classes it quotes.

    What would end the line, steer a terminal, turn its direction, or is no character at all is spelled out: `\n`,
    `\x1b`, `\u202e`; bytes of a name that are not UTF-8 (Python keeps them as lone surrogates) as `\xff`.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else _spelled(c) for c in text)


def as_text(name: str) -> str:
    r"""A name that every encoding of Unicode takes: bytes that are not UTF-8 as `\xff`; the rest as it is.

    What is written for others, to CSV and JSON, has names in this form. `as_name` is its inverse.
    """
    return "".join(_spelled(c) if "\ud800" <= c <= "\udfff" else c for c in name)


def as_name(text: str) -> str:
    r"""The name that `as_text` made a text of: `\x80` to `\xff` are bytes of it again."""
    return re.sub(r"\\x([89a-f][0-9a-f])", lambda found: chr(0xDC00 + int(found[1], 16)), text)


def _spelled(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of a file name, by os.fsdecode
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


class UserError(Exception):
    """A mistake in a setting, a path or a file. Its message is one line that names the thing and the remedy.

    Attributes:
        shared: whether all processes of the run raise it; otherwise the others wait for the one that does.
    """

    shared = False

    def __init__(self, message: str):
        super().__init__(one_line(message))


class Interrupted(Exception):
    """A run stopped because a signal asked for it, and everything is saved. Its message says where it stands.

    Attributes:
        signal: the signal's number.
    """

    def __init__(self, signal: int, message: str):
        super().__init__(one_line(message))
        self.signal = signal
