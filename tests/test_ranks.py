"""How ranks end, and what the first one may use while the others wait."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import bytefit.ranks as ranks_module
from bytefit.ranks import Ranks, all_cores

WORKER = """
import sys, warnings
import torch
from bytefit.ranks import join_ranks, run_process

def do():
    ranks = join_ranks()
    if sys.argv[1] == "break" and not ranks.is_first:
        raise RuntimeError("the second rank is out of memory")
    if sys.argv[1] == "well":
        warnings.simplefilter("error")  # torch renames its operations now and then
        share, wait = ranks.scatter_sum_started(torch.arange(4.0) + ranks.rank)
        wait()
        whole, wait = ranks.gather_started(share)
        wait()
        assert whole.tolist() == [1.0, 3.0, 5.0, 7.0], whole
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


@pytest.mark.parametrize(("code", "together"), [(0, True), (130, True), (1, False), (2, False)])
def test_only_ranks_that_all_end_say_good_bye(monkeypatch, code, together) -> None:
    """NCCL waits there for those who are in another operation; gloo does not, so the test above cannot show it."""
    done = []
    monkeypatch.setattr(ranks_module, "leave_ranks", lambda: done.append("left"))
    monkeypatch.setattr(torch.distributed, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr("os._exit", done.append)
    monkeypatch.setattr(sys, "exit", done.append)
    ranks_module.end_process(code)
    assert done[: 1 + together] == ["left"] * together + [code]


@pytest.mark.parametrize(("gpus", "backend", "device"), [(1, "gloo", "cpu"), (2, "nccl", "cuda:1")])
def test_more_processes_than_gpus_compute_on_the_cpu(monkeypatch, capsys, gpus, backend, device) -> None:
    """The README's line for two ranks runs on a machine with one GPU too."""
    started = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", started.append)
    for name, value in {"is_torchelastic_launched": True, "is_initialized": False, "get_rank": 1, "get_world_size": 2}.items():
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, timeout: started.append(backend))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert ranks_module.join_ranks() == Ranks(1, 2, device)
    assert started == [1] * (gpus == 2) + [backend]
    monkeypatch.setenv("LOCAL_RANK", "0")
    ranks_module.join_ranks()
    assert ("1 GPUs are too few for 2 processes" in capsys.readouterr().err) == (gpus == 1)


def test_without_ranks_an_error_is_python_s_own() -> None:
    script = "from bytefit.ranks import run_process\nrun_process(lambda: int('x'))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ValueError" in done.stderr


@pytest.mark.parametrize(("cores", "used"), [(5, 5), (64, 8)])
def test_the_first_rank_has_more_cores_while_the_others_wait(monkeypatch, cores, used) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(cores))
    threads = torch.get_num_threads()
    seen = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    with all_cores(Ranks(0, 1, "cpu")):
        assert seen == []
    with all_cores(Ranks(0, 2, "cpu")):
        assert seen == [used]
    assert seen == [used, threads]
