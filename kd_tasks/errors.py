"""The one exception for faults that a person can mend."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A fault in a config, a file or a command: the message says what, where, and what to do.

    The command line prints the message without a traceback and exits with code 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the known name closest to `name`, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""
