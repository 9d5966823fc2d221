"""Compiling: functions with numba, graphs with ``torch.compile``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


class DoesNotCompile(Exception):
    """``torch.compile`` does not work here; the message is its error's first line."""


@contextmanager
def graphs_allowed() -> Iterator[None]:
    """Calls of compiled functions for the first time, as many as there are graphs.

    Beyond a limit, eight by default, the compiler would quietly leave a function at eager ones.

    Raises:
        DoesNotCompile: where there is no C++ compiler, or anything else that stops it.
    """
    import torch._dynamo  # here: the compiler takes a second to import
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
    from torch._inductor.exc import InductorError

    limits = {"recompile_limit": 10_000, "accumulated_recompile_limit": 10_000, "fail_on_recompile_limit_hit": True}
    try:
        with torch._dynamo.config.patch(limits):
            yield
    except (TorchDynamoException, InductorError, FailOnRecompileLimitHit) as error:
        raise DoesNotCompile(str(error).strip().splitlines()[0]) from error
