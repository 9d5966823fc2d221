"""How ranks end, and what the first one may use while the others wait."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from bytefit.ranks import Ranks, all_cores

WORKER = """
import sys
from bytefit.ranks import join_ranks, run_process

def do():
    ranks = join_ranks()
    if sys.argv[1] == "break" and not ranks.is_first:
        raise RuntimeError("the second rank is out of memory")
    if sys.argv[1] != "all":
        ranks.barrier()  # where the other one waits for a rank that never comes
    return 3 if sys.argv[1] == "all" else 0

run_process(do)
"""


@pytest.mark.parametrize(("how", "code", "said"), [("well", 0, ""), ("break", 1, "the second rank is out of memory"), ("all", 1, "")])
def test_a_rank_that_fails_takes_the_others_with_it(tmp_path, how, code, said) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    assert said in done.stderr


def test_without_ranks_an_error_is_python_s_own() -> None:
    script = "from bytefit.ranks import run_process\nrun_process(lambda: int('x'))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ValueError" in done.stderr


def test_the_first_rank_has_every_core_while_the_others_wait(monkeypatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    threads = torch.get_num_threads()
    seen = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    with all_cores(Ranks(0, 1, "cpu")):
        assert seen == []
    with all_cores(Ranks(0, 2, "cpu")):
        assert seen == [5]
    assert seen == [5, threads]
