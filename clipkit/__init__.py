"""clipkit: from web pages to a contamination report.

The rooms of the house are `dataset`, `model`, `training`, `evaluation`, `overlap` and `report`; `cli` is a thin skin over them.
Importing this package imports nothing heavy.
"""

__version__ = "0.1.0"

__all__ = ["UserError", "__version__", "printable"]


def printable(text: str) -> str:
    """Text that may come from a web page, a tar or a file name, on one line and without terminal escapes."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "" for c in text)


class UserError(ValueError):
    """A mistake of the user's, told in one sentence: the value, what was expected, how to mend it.

    Every room raises it; the command line prints its text without a traceback and exits with code 2. The text is made printable.
    """

    def __init__(self, text: str) -> None:
        """`text`: the sentence."""
        super().__init__(printable(text))
