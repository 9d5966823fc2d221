"""The hub's client, and its many errors as one line each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bytefit.errors import UserError
from bytefit.extras import extra

AGAIN = "what has arrived is kept: run the same command again"


def hub() -> Any:
    """The package ``huggingface_hub``. Raises UserError where it is not installed."""
    return extra("huggingface_hub", "hub")


@contextmanager
def hub_errors(repo: str) -> Iterator[None]:
    """Turns what the hub or the way to it refuses into a UserError that names the repository."""
    errors = extra("huggingface_hub.errors", "hub")
    transport_error = errors.HfHubHTTPError.__bases__[0]  # of httpx or httpx2, whichever the installed version is built on
    try:
        yield
    except errors.GatedRepoError:
        raise UserError(f"{repo} is open only to those whom its owner let in; ask on its page, then log in with: hf auth login") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"the hub has no repository {repo}, or shows it only to its members (log in with: hf auth login)") from None
    except (errors.EntryNotFoundError, errors.RevisionNotFoundError, FileNotFoundError) as error:
        raise UserError(f"{repo} lacks a file that belongs to it ({_first_line(error)})") from None
    except errors.HFValidationError as error:
        raise UserError(f"{repo} is not the name of a repository ({_first_line(error)})") from None
    except (transport_error, errors.OfflineModeIsEnabled) as error:
        raise UserError(f"the hub does not give {repo} ({_first_line(error)}); {AGAIN}") from None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
