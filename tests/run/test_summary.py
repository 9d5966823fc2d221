"""What a run's summary says of itself."""

from __future__ import annotations

import json
import shutil

from bytefit.run.folder import RunFolder
from bytefit.run.pipeline import run
from tests.conftest import ONE_RANK


def test_the_hardware_is_what_trained(tiny_run, tmp_path) -> None:
    """A model trained on a GPU may be packed and scored on a laptop; its seconds are the GPU's."""
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(tiny_run.path, folder.path)
    state = folder.checkpoint / "state.json"
    record = json.loads(state.read_text())
    record["machine"] |= {"gpu": "a large one", "threads": 7}
    state.write_text(json.dumps(record))
    run(tiny_run.read_recipe(), data=None, out=folder.path, resume=True, ranks=ONE_RANK)
    hardware = json.loads(folder.summary.read_text())["hardware"]
    assert (hardware["gpu"], hardware["threads"]) == ("a large one", 7)
