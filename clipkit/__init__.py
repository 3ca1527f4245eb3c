"""clipkit: from web pages to a contamination report.

The rooms of the house are `dataset`, `model`, `training`, `evaluation`, `overlap` and `report`; `cli` is a thin skin over them.
Importing this package imports nothing heavy.
"""

__version__ = "0.1.0"

__all__ = ["UserError", "__version__"]


class UserError(ValueError):
    """A mistake of the user's, told in one sentence: the value, what was expected, how to mend it.

    Every room raises it; the command line prints its text without a traceback and exits with code 2.
    """
