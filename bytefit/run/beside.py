"""What stands beside training and scoring: the corpus where none is given, the proof, and other compressors on the same text.

Apart from ``steps.py``, so that a script which trains and scores alone needs no coder and no compressors.
"""

from __future__ import annotations

from pathlib import Path

from bytefit.data.dataset import Dataset, open_dataset
from bytefit.data.embedded import embedded_dataset
from bytefit.dtypes import resolve_dtype
from bytefit.ledger import Ledger
from bytefit.recipes.recipe import Recipe
from bytefit.run.folder import RunFolder
from bytefit.score.compressors import compressors_bits_per_byte
from bytefit.score.prove import Proof, cut_documents, prove


def dataset_for(recipe: Recipe, data: Path | None) -> Dataset:
    """The given dataset, or the embedded corpus with the recipe's tokenizer."""
    return open_dataset(data if data is not None else embedded_dataset(recipe.tokenizer))


def prove_step(folder: RunFolder, recipe: Recipe, dataset: Dataset, ledger: Ledger) -> Proof:
    """Compress and restore the head of the validation text; the compressed text stays in ``proof.bytefitz``."""
    documents = cut_documents(dataset.val_documents(recipe.score.proof_bytes), recipe.score.proof_bytes)
    with ledger.measure("prove"):
        return prove(folder.artifact, documents, folder.proof_text, resolve_dtype(recipe.train.dtype, "cpu"))


def compare_compressors(dataset: Dataset, recipe: Recipe, ledger: Ledger) -> dict[str, float]:
    """The five general-purpose compressors on the text that was scored."""
    with ledger.measure("report"):
        return compressors_bits_per_byte(dataset.val_documents(recipe.score.max_bytes))
