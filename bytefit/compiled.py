"""Functions that numba compiles."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(**options: Any) -> Callable[[_Function], _Function]:
    """numba's ``njit``, with what it compiled kept on disk.

    Its cache watches the file that a function stands in. Where there is none (code that is imported from memory, from a submission's
    script) every process compiles for itself.
    """

    def compile_it(function: _Function) -> _Function:
        return cast(_Function, njit(cache=os.path.exists(function.__code__.co_filename), **options)(function))

    return compile_it
