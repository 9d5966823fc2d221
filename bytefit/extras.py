"""Packages that not everybody needs: imported when they are used, with one clear line where they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from bytefit.errors import UserError


def extra(module: str, name: str) -> Any:
    """An optional package's module.

    Args:
        module: what to import, for example ``"huggingface_hub"``.
        name: the extra of bytefit that installs it.

    Raises:
        UserError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"this needs the package {error.name or module}; install it with: pip install 'bytefit[{name}]'") from None
