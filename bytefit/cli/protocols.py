"""The protocol that a verb works with: an artifact's own, or another kind of it."""

from __future__ import annotations

from collections.abc import Sequence

from bytefit.artifact.load import Artifact
from bytefit.config import apply_settings
from bytefit.errors import UserError
from bytefit.score.adapt import Adapt, DocumentLora
from bytefit.score.compressed import default_protocol
from bytefit.score.scorer import ScoreProtocol
from bytefit.score.windows import Full, Sliding

CHUNK_TOKENS = 8_192  # of adapting, where an artifact says nothing of it
PROTOCOLS = ("full", "sliding", "adapt", "documents")
CODED = PROTOCOLS[1:]  # those that text is compressed with


def protocol_of(
    artifact: Artifact,
    kind: str | None,
    *,
    window: int | None = None,
    stride: int | None = None,
    contest: bool = False,
    settings: Sequence[str] = (),
) -> ScoreProtocol:
    """The artifact's own protocol, or one of the kind that was asked for, with replacements (PATH=VALUE). Raises UserError."""
    own = default_protocol(artifact)
    width = own.window if window is None else window
    step = min(own.stride, width) if stride is None else stride
    kind = kind or {Sliding: "sliding", Adapt: "adapt", DocumentLora: "documents"}[type(own)]
    if kind in ("full", "documents") and stride is not None:
        raise UserError(f"--stride {stride} belongs to --protocol sliding or adapt")
    if kind in ("adapt", "documents") and contest:
        raise UserError("--contest belongs to --protocol full or sliding")
    if kind in ("full", "sliding") and settings:
        raise UserError(f"--set {settings[0]}: the protocol {kind} has no further fields; use --window and --stride")
    assigned = [assignment.partition("=")[::2] for assignment in settings]
    try:
        if kind == "full":
            return Full(window=width, contest=contest)
        if kind == "sliding":
            return Sliding(window=width, stride=step, contest=contest)
        changes = [("window", str(width))] + ([("stride", str(step))] if kind == "adapt" else [])
        if kind == "adapt":
            adapt = own if isinstance(own, Adapt) else Adapt(window=own.window, stride=min(step, own.window), chunk_tokens=CHUNK_TOKENS)
            return apply_settings(adapt, changes + assigned)
        lora = own if isinstance(own, DocumentLora) else DocumentLora(window=own.window, chunk_tokens=min(32, own.window))
        return apply_settings(lora, changes + assigned)
    except ValueError as error:
        raise UserError(str(error)) from None
