"""What stands beside training and scoring: the corpus where none is given, the proof, and other compressors on the same text.

Apart from ``steps.py``, so that a script which trains and scores alone needs no coder and no compressors.
"""

from __future__ import annotations

from pathlib import Path

from bytefit.data.dataset import Dataset, open_dataset
from bytefit.data.embedded import embedded_dataset, is_embedded
from bytefit.dtypes import resolve_dtype
from bytefit.errors import UserError
from bytefit.files import read_json
from bytefit.ledger import Ledger
from bytefit.recipes.recipe import Recipe
from bytefit.run.folder import RunFolder
from bytefit.score.compressors import compressors_bits_per_byte
from bytefit.score.prove import Proof, cut_documents, prove


def dataset_for(recipe: Recipe, data: Path | None) -> Dataset:
    """The given dataset, or the embedded corpus with the recipe's tokenizer."""
    return open_dataset(data if data is not None else embedded_dataset(recipe.tokenizer))


def data_of(folder: RunFolder) -> Path | None:
    """The dataset folder that the run in this folder was started with; None where there is no run, and for the embedded corpus where it
    is no longer in the cache.

    Raises:
        UserError: the folder is gone.
    """
    data = read_json(folder.env).get("data") if folder.recipe.exists() and folder.env.exists() else None
    if not data or Path(data).is_dir():
        return Path(data) if data else None
    if is_embedded(Path(data)):
        return None
    raise UserError(
        f"{data}, the dataset of the run in {folder.path}, is no longer there; say where it lies now with --data "
        "(bytefit run … --resume --data DIR writes it down for every verb)"
    )


def prove_step(folder: RunFolder, recipe: Recipe, dataset: Dataset, ledger: Ledger) -> Proof:
    """Compress and restore the head of the validation text; the compressed text stays in ``proof.bytefitz``."""
    documents = cut_documents(dataset.val_documents(recipe.score.proof_bytes), recipe.score.proof_bytes)
    with ledger.measure("prove"):
        return prove(folder.artifact, documents, folder.proof_text, resolve_dtype(recipe.train.dtype, "cpu"))


def compare_compressors(dataset: Dataset, recipe: Recipe, ledger: Ledger) -> dict[str, float]:
    """The five general-purpose compressors on the text that was scored."""
    with ledger.measure("report"):
        return compressors_bits_per_byte(dataset.val_documents(recipe.score.max_bytes))
