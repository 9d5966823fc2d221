"""One script out of a recipe and the modules that it needs, and how many bytes that takes.

The script is ``loader.py``, then everything else as one text: JSON, bz2 (a few per cent smaller here than lzma), base 85. It depends on the
recipe alone, and on the version of bytefit: not on the seed, and not on the room that was left for it.
"""

from __future__ import annotations

import base64
import bz2
import dataclasses
import json
from pathlib import Path
from typing import Any

from bytefit import __version__
from bytefit.artifact.pack import room_for_code
from bytefit.config import to_json
from bytefit.errors import UserError
from bytefit.recipes.recipe import Recipe
from bytefit.submit import loader
from bytefit.submit.closure import closure
from bytefit.submit.strip import stripped

HEAD = f"""\
# Made by bytefit {__version__}. The text at the end holds its modules, without comments; everything that runs is in this file.
# To read them: python train_gpt.py --unpack DIR
"""


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON, without what differs between runs of one record."""
    record: dict[str, Any] = json.loads(json.dumps(to_json(recipe)))
    del record["seed"], record["pack"]["code_bytes"]
    return record


def script_for(recipe: Recipe, score_dtype: str = "bfloat16") -> bytes:
    """The script ``train_gpt.py``.

    Args:
        score_dtype: the dtype in which its scores are made, as ``score.json`` names it.
    """
    sources = {name: stripped(source) for name, source in closure(loader.ENTRY).sources.items()}
    packed = {"settings": {"recipe": settings_of(recipe), "score_dtype": score_dtype}, "sources": sources}
    text = json.dumps(packed, ensure_ascii=False, separators=(",", ":")).encode()
    payload = base64.b85encode(bz2.compress(text, 9)).decode()
    head = stripped(Path(loader.__file__).read_text())
    return f'{HEAD}{head}\npayload = "{payload}"\nstart(__file__, payload)\n'.encode()  # a traceback shows the last line


def with_room_for_code(recipe: Recipe) -> Recipe:
    """The recipe with as many bytes of its cap left for code as its script needs. Raises UserError where the cap is less than that."""
    room = room_for_code(len(script_for(recipe)))
    try:
        return dataclasses.replace(recipe, pack=dataclasses.replace(recipe.pack, code_bytes=room))
    except ValueError as error:
        raise UserError(str(error)) from None
