"""A run's ``metrics.jsonl`` into TensorBoard or Trackio.

The training loop knows of neither: it appends lines to a file, and this reads them, afterwards or while the run goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from bytefit.errors import UserError
from bytefit.extras import extra
from bytefit.files import read_json
from bytefit.run.folder import RunFolder

Dashboard = Literal["tensorboard", "trackio"]
POLL_SECONDS = 1.0
Point = tuple[int, dict[str, float]]  # a step, and its numbers by name


def export_metrics(folder: RunFolder, to: Dashboard, *, place: Path | None, project: str, follow: bool) -> int:
    """Send every logged step of a run.

    Args:
        place: TensorBoard's log folder, in which the run gets a folder of its name (None: ``tensorboard`` in the run folder itself); what
            an earlier export of the run wrote there is replaced.
        project: Trackio's.
        follow: wait for more until the training is finished.

    Returns:
        How many steps were sent.

    Raises:
        UserError: no run there, no metrics in it, or the package is missing.
    """
    folder.read_recipe()
    if not folder.metrics.exists():
        raise UserError(f"{folder.path} has no metrics.jsonl yet; its training has not begun")
    points = read_points(folder.metrics, folder.training_finished if follow else None)
    if to == "trackio":
        return _to_trackio(points, folder, project)
    return _to_tensorboard(points, place / folder.path.resolve().name if place else folder.path / "tensorboard")


def read_points(path: Path, finished: Callable[[], bool] | None = None) -> Iterator[Point]:
    """The steps of ``metrics.jsonl``, each as its whole line has been written.

    A run that goes on from a checkpoint drops the lines after it by writing the file anew; reading then starts again, and passes over
    the steps that came before.

    Args:
        finished: asked after the last line; None or True ends the reading, False waits for more.
    """
    sent, place, identity = 0, 0, None
    while True:
        last_round = finished is None or finished()
        with open(path, "rb") as file:
            found = os.fstat(file.fileno()).st_ino
            place, identity = (place if found == identity else 0), found
            file.seek(place)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # still being written, or cut short by a kill
                place += len(line)
                record = json.loads(line)
                step = record.pop("step")
                if step > sent:
                    sent = step
                    yield step, {name: value for name, value in record.items() if isinstance(value, int | float)}
        if last_round:
            return
        time.sleep(POLL_SECONDS)


def _to_tensorboard(points: Iterator[Point], place: Path) -> int:
    writers = extra("torch.utils.tensorboard", "tensorboard")
    for old in place.glob("events.out.tfevents.*"):
        old.unlink()
    count = 0
    with writers.SummaryWriter(str(place)) as writer:
        for step, numbers in points:
            for name, value in numbers.items():
                writer.add_scalar(name, value, step)
            count += 1
    return count


def _to_trackio(points: Iterator[Point], folder: RunFolder, project: str) -> int:
    trackio = extra("trackio", "trackio")
    count = 0
    with contextlib.redirect_stdout(sys.stderr):  # its greetings are no part of a verb's answer
        trackio.init(project=project, name=folder.path.resolve().name, config=read_json(folder.recipe), embed=False)
        for step, numbers in points:
            trackio.log(numbers, step=step)
            count += 1
        trackio.finish()
    return count
