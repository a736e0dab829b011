"""What a user can put right."""

import os


class UserError(Exception):
    """Bad input: the message is one line that says what is wrong, where, and what to do.

    Several things that are wrong at once are several arguments, a line each.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


def shown(text: str | os.PathLike[str]) -> str:
    """A path, or what another program said, as it can stand in a message: on one line, and printable anywhere.

    A path may hold line breaks, and bytes that are no UTF-8, which Python keeps as lone surrogates that no terminal
    takes: these are written as escapes.

    >>> print(shown("caf\\udce9/two\\nlines"))
    caf\\udce9/two\\nlines
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in os.fspath(text))
