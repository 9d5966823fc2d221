"""What only the report shows of a run: what rounding did to each matrix, a passage token by token, and what the model says.

A step of its own, after everything that counts: nothing here touches the artifact or its scores, and the script of a submission, which
pays for the bytes of the steps that it needs, does without it.
"""

from __future__ import annotations

import codecs
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bytefit.artifact.load import Artifact, load_artifact
from bytefit.config import to_json
from bytefit.data.dataset import Dataset
from bytefit.data.tokenizer import BOS_ID, Tokenizer
from bytefit.files import write_json
from bytefit.ledger import Ledger
from bytefit.model.roles import Role
from bytefit.recipes.recipe import Recipe
from bytefit.run.folder import RunFolder, trained_weights
from bytefit.run.steps import check_fits, val_tokens
from bytefit.score.generate import generate
from bytefit.score.predictor import ModelPredictor
from bytefit.score.windows import Sliding

PASSAGE_BYTES = 1500
NUM_LIKELIEST = 5
TEMPERATURES, SAMPLES_EACH, SAMPLE_TOKENS = (0.8, 0.5), 2, 64


def details_step(folder: RunFolder, recipe: Recipe, dataset: Dataset, ledger: Ledger) -> None:
    """Look closely at the artifact, leaving ``details.json``.

    Raises:
        UserError: the artifact cannot be read, is not of this dataset, or its checkpoint is gone.
    """
    with ledger.measure("report"):
        artifact = load_artifact(folder.artifact)
        check_fits(artifact, dataset)
        protocol = Sliding(window=recipe.score.window, stride=recipe.score.stride)
        record = {
            "artifact_sha256": artifact.sha256,
            "matrices": matrices_of(artifact, trained_weights(folder)),
            "passage": passage_of(artifact, first_passage(dataset, recipe.score.max_bytes), protocol),
            "samples": samples_of(artifact, recipe.seed),
        }
    write_json(folder.details, record)


def matrices_of(artifact: Artifact, weights: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Each matrix against the float weights (by parameter name) that it was packed from, in the model's order.

    Returns:
        ``name``, ``role``, ``block`` (null outside the blocks), ``rows``, ``columns``; ``relative_error``, which is ‖W − Ŵ‖ / ‖W‖;
        ``bytes`` of its codes (null where the codec compresses several matrices as one).
    """
    found = []
    for info in artifact.model.parameter_infos():
        if info.role is Role.GAIN:
            continue
        w, packed = weights[info.name].double().cpu(), info.parameter.detach().double()
        rows, columns = w.shape
        error = float((w - packed).norm() / w.norm().clamp_min(1e-30))  # a matrix of zeros has no error
        record = {"name": info.name, "role": info.role.value, "block": info.block, "rows": rows, "columns": columns}
        found.append(record | {"relative_error": error, "bytes": artifact.matrix_bytes.get(info.name)})
    return found


def first_passage(dataset: Dataset, max_bytes: int | None) -> np.ndarray:
    """The beginning of the first validation document that has ``PASSAGE_BYTES`` bytes (or of the longest one), BOS first: int64 (N,).

    The first, so that nobody chooses what looks best.
    """
    tokens = val_tokens(dataset, max_bytes)
    counts = np.concatenate([[0], dataset.byte_table.count(tokens[1:], tokens[:-1])])
    starts = np.union1d([0], np.flatnonzero(tokens == BOS_ID))
    ends = np.append(starts[1:], len(tokens))
    before = np.append(0, np.cumsum(counts))
    sizes = before[ends] - before[starts]
    chosen = int(np.argmax(np.minimum(sizes, PASSAGE_BYTES)))
    start, end = int(starts[chosen]), int(ends[chosen])
    return tokens[start : min(end, start + 1 + int(np.searchsorted(np.cumsum(counts[start:end]), PASSAGE_BYTES)))]


def passage_of(artifact: Artifact, tokens: np.ndarray, protocol: Sliding) -> dict[str, Any]:
    """What each token of a passage costs, and what was likelier there.

    Args:
        tokens: int64 (N,); the first is context only.

    Returns:
        ``protocol``, ``bytes``, ``bits``, and a list ``tokens`` of: ``text`` (what it adds to the text, empty within a character),
        ``label`` (the token by itself), ``probability``, ``bits``, ``likeliest`` (pairs of label and probability).
    """
    predictor, tokenizer = ModelPredictor(artifact.model, torch.float32), artifact.tokenizer
    ids = torch.from_numpy(tokens)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    listed = []
    with torch.inference_mode():
        for window in protocol.windows(len(ids)):
            logits_TV = predictor.logits(ids[None, window.start : window.end], window.first - 1 - window.start)[0]
            nats_TV = -torch.log_softmax(logits_TV.double(), -1)
            for target, nats_V in zip(ids[window.first : window.end + 1].tolist(), nats_TV, strict=True):
                likeliest = nats_V.topk(NUM_LIKELIEST, largest=False)
                nats = float(nats_V[target])
                record: dict[str, Any] = {"text": decoder.decode(tokenizer.token_bytes[target]), "label": token_label(tokenizer, target)}
                record |= {"probability": math.exp(-nats), "bits": nats / math.log(2)}
                pairs = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
                listed.append(record | {"likeliest": [[token_label(tokenizer, other), math.exp(-cost)] for other, cost in pairs]})
    return {
        "protocol": to_json(protocol),
        "bytes": int(artifact.byte_table.count(tokens[1:], tokens[:-1]).sum()),
        "bits": sum(token["bits"] for token in listed),
        "tokens": listed,
    }


def token_label(tokenizer: Tokenizer, token: int) -> str:
    """A token by itself, with its spaces and line ends made visible; in hexadecimal where it is no whole character."""
    data = tokenizer.token_bytes[token]
    if not data:
        return "end of text" if token == BOS_ID else "(nothing)"
    try:
        return data.decode().translate({ord(" "): "␣", ord("\n"): "↵", ord("\t"): "⇥"})
    except UnicodeDecodeError:
        return " ".join(f"0x{byte:02x}" for byte in data)


def samples_of(artifact: Artifact, seed: int) -> list[dict[str, Any]]:
    """A few short texts from no prompt at all: ``temperature``, ``seed`` and ``text``."""
    found = []
    for temperature in TEMPERATURES:
        for own_seed in range(seed, seed + SAMPLES_EACH):
            pieces = generate(artifact, b"", num_tokens=SAMPLE_TOKENS, temperature=temperature, seed=own_seed)
            found.append({"temperature": temperature, "seed": own_seed, "text": b"".join(pieces).decode("utf-8", "replace")})
    return found
