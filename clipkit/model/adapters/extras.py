"""Packages that clipkit can use and does not need: imported when first asked for."""

import importlib
from typing import Any

from clipkit import UserError


def extra(module: str, name: str) -> Any:
    """The module of another package. Raises UserError naming clipkit's extra that installs it."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # A torchvision that does not fit its torch fails with a RuntimeError.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise UserError(f"`{module}` cannot be imported ({reason}): install it with `pip install clipkit[{name}]`") from None
