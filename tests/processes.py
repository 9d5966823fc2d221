"""Programs in processes of their own, on one rank or on several, which do not wait for their imports.

A process spends seconds on importing torch, and ``torchrun`` starts one a rank besides itself. Here a server imported it once, and forks:
what it forks finds ``torchrun``'s environment and joins its ranks as under ``torchrun`` itself, with which tests/test_ranks.py and
tests/train/test_train.py start theirs.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.distributed as dist

from bytefit.ranks import run_process

SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(["bytefit.cli.runs"])


class Processes:
    """The ranks of one program, with a thread each; what they say goes to a file.

    Args:
        world: number of ranks; 1 starts a program plainly.
        do: importable by its name; called with the arguments, returns the exit code.
    """

    def __init__(self, world: int, do: Callable[..., int], *arguments: object) -> None:
        file, name = tempfile.mkstemp()
        os.close(file)
        self._said = Path(name)
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if world > 1 else None
        common = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": True}
        self._ranks = []
        for rank in range(world):
            environment = {} if self._store is None else common | {
                "MASTER_PORT": self._store.port, "TORCHELASTIC_RUN_ID": "test", "RANK": rank, "LOCAL_RANK": rank,
            }  # fmt: skip
            self._ranks.append(SERVER.Process(target=_be, args=(environment, self._said, do, arguments), daemon=True))
            self._ranks[-1].start()

    @property
    def running(self) -> bool:
        return any(rank.is_alive() for rank in self._ranks)

    def send(self, number: signal.Signals) -> None:
        for rank in self._ranks:
            if rank.is_alive():
                os.kill(rank.pid, number)

    def wait(self) -> tuple[list[int], str]:
        """The exit codes of the ranks, and what was said."""
        for rank in self._ranks:
            rank.join()
        said = self._said.read_text()
        self._said.unlink()
        return [rank.exitcode for rank in self._ranks], said


def _be(environment: dict[str, object], said: Path, do: Callable[..., int], arguments: tuple[object, ...]) -> None:
    output = os.open(said, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    run_process(lambda: do(*arguments))


def run_ranks(world: int, do: Callable[..., int], *arguments: object) -> None:
    """Run a program to its end, which must be a good one."""
    codes, said = Processes(world, do, *arguments).wait()
    assert codes == [0] * world, said
