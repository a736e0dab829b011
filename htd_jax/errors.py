"""The error for input that a user can correct."""

import os
import re


class UserError(ValueError):
    """Invalid input: the message is one line that says what is wrong, where, and what to do.

    A setting or argument is named in backquotes, as a caller in Python writes it: "`dim` must be at least 1". Nothing
    else in a message is in backquotes. Several errors at once are several arguments, one line each.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


def as_flags(message: str) -> str:
    """Returns a message with every setting named as its flag, for who typed flags.

    >>> as_flags("`htd.group_level` is unknown")
    '--htd.group-level is unknown'
    """
    return re.sub(r"`([a-z][\w.-]*)`", lambda name: "--" + name[1].replace("_", "-"), message)


def shown(text: str | os.PathLike[str]) -> str:
    """A path, or what another program said, as it can stand in a message: on one line, and printable anywhere.

    A path may hold line breaks, and bytes that are no UTF-8, which Python keeps as lone surrogates that no terminal
    takes: these are written as escapes.

    >>> print(shown("caf\\udce9/two\\nlines"))
    caf\\udce9/two\\nlines
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in os.fspath(text))
