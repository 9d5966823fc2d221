"""What the page's JavaScript cannot run. A new part of the model is refused by name until the page knows it too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from bytefit.config import to_json
from bytefit.data.tokenizer import SentencePieceTokenizer, Tokenizer
from bytefit.model.language_model import ModelConfig

# Every setting that js/layout.mjs and js/language_model.mjs follow, or that only says how training starts.
KNOWN_SETTINGS = {
    "ModelConfig": "vocab_size dim context plan bigram trigram loop_positions smear attention value_embedding mlp depth_scaled_norm "
    "lanes head embed_init_std orthogonal_init",
    "Step": "block push pop position",
    "BigramHashConfig": "buckets dim scale_init orthogonal_gain mask_documents",
    "TrigramHashConfig": "buckets dim scale_init orthogonal_gain mask_documents",
    "LoopPositionsConfig": "count scale",
    "SmearGateConfig": "gate_init mask_documents",
    "AttentionConfig": "num_heads num_kv_heads q_gain_init rotary exclusive output_gate value_residual",
    "RotaryConfig": "base dims reference_length length table_dtype",
    "ExclusiveConfig": "blocks",
    "OutputGateConfig": "channels blocks",
    "ValueResidualConfig": "first_init own_init",
    "ValueEmbeddingConfig": "blocks dim init_std scale_init orthogonal_gain",
    "ReluSquaredConfig": "width slope",
    "SwigluConfig": "width",
    "ParallelLanesConfig": "start",
    "HeadConfig": "tied softcap",
    "LearnedCaps": "init",
    "OrthogonalInit": "min_size",
}
_BPE = 2
_KNOWN_PIECES = {1: "normal", 2: "unknown", 3: "control", 6: "byte"}


def lacking_parts(config: ModelConfig) -> list[str]:
    """Dotted paths of the settings that are on in this model and that the page does not know."""
    return list(_unknown_settings(to_json(config), "model"))


def _unknown_settings(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _unknown_settings(item, path)
    elif isinstance(value, dict):
        if value["type"] not in KNOWN_SETTINGS:
            yield f"{path} ({value['type']})"
            return
        known = KNOWN_SETTINGS[value["type"]].split()
        for name, setting in value.items():
            if name == "type":
                continue
            if name in known:
                yield from _unknown_settings(setting, f"{path}.{name}")
            elif setting is not None and setting is not False:
                yield f"{path}.{name}"


def lacking_tokenizer(tokenizer: Tokenizer) -> list[str]:
    """What this tokenizer does that the page's does not."""
    if not isinstance(tokenizer, SentencePieceTokenizer):
        return []
    model: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    model.ParseFromString(tokenizer.to_bytes())
    found = []
    if model.trainer_spec.model_type != _BPE:
        found.append("a SentencePiece model that is not BPE")
    if model.trainer_spec.treat_whitespace_as_suffix:
        found.append("space marks at the end of pieces")
    if any(piece.type not in _KNOWN_PIECES for piece in model.pieces):
        found.append("user-defined or unused pieces")
    if int(tokenizer.is_byte.sum()) != 256:
        found.append("a vocabulary without byte pieces")
    return found
