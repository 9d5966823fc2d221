"""The adapter in the real lm-evaluation-harness, on local text."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from bytefit.artifact.load import load_artifact
from bytefit.data.tokenizer import BOS_ID
from bytefit.score.generate import generate
from bytefit.score.scorer import score
from bytefit.score.windows import Full, Sliding
from tests.conftest import make_documents

lm_eval = pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # of its many dependencies


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [*make_documents(3, seed=7), "Short.", "naïve 🙂 \u2581 <s>"]


@pytest.fixture(scope="module")
def model(tiny_run):
    from bytefit.tools.lm_eval import ArtifactLM

    return ArtifactLM(tiny_run.artifact)


def requests(kind: str, *arguments: tuple[object, ...]):
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=each, idx=i) for i, each in enumerate(arguments)]


@pytest.mark.parametrize("stride", [None, 8])
def test_rolling_is_the_score(tiny_run, texts, stride) -> None:
    from lm_eval.api.registry import get_model

    import bytefit.tools.lm_eval  # noqa: F401  (registers the model)

    artifact = load_artifact(tiny_run.artifact)
    window = artifact.model.config.context
    protocol = Full(window=window) if stride is None else Sliding(window=window, stride=stride)
    found = get_model("bytefit").create_from_arg_obj({"artifact": str(tiny_run.artifact), "stride": stride}).loglikelihood_rolling(
        requests("loglikelihood_rolling", *((text,) for text in texts))
    )  # fmt: skip
    for text, nats in zip(texts, found, strict=True):
        tokens = np.array([BOS_ID, *artifact.tokenizer.encode_exact(text.encode())])
        assert nats == pytest.approx(-score(artifact.model, tokens, artifact.byte_table, protocol, torch.float32).nats, rel=1e-4)


def test_the_harness_measures_a_local_text(tiny_run, model, texts, tmp_path) -> None:
    """A task from a folder: its bits per byte are those of bytefit's own scores of the same documents."""
    from lm_eval.tasks import TaskManager

    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "local.yaml").write_text(
        "task: local_text\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: "
        f"{tmp_path / 'texts.jsonl'}\n  cache_dir: {tmp_path / 'cache'}\noutput_type: loglikelihood_rolling\ntest_split: test\n"
        'doc_to_text: ""\ndoc_to_target: "{{text}}"\n'
        "metric_list:\n  - metric: bits_per_byte\n"
    )
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    results = lm_eval.simple_evaluate(model=model, tasks=["local_text"], task_manager=manager, bootstrap_iters=0)
    artifact = load_artifact(tiny_run.artifact)
    nats = 0.0
    for text in texts:
        tokens = np.array([BOS_ID, *artifact.tokenizer.encode_exact(text.encode())])
        nats += score(artifact.model, tokens, artifact.byte_table, Full(window=artifact.model.config.context), torch.float32).nats
    wanted = nats / math.log(2) / sum(len(text.encode()) for text in texts)
    assert results["results"]["local_text"]["bits_per_byte,none"] == pytest.approx(wanted, rel=1e-4)


def test_continuations_add_up(model, texts) -> None:
    """A short text in two parts costs what it costs whole, and what greedy decoding writes is called greedy."""
    (whole,) = model.loglikelihood_rolling(requests("loglikelihood_rolling", ("The river was",)))
    (first, _), (second, _) = model.loglikelihood(requests("loglikelihood", ("", "The river"), ("The river ", "was")))
    assert first + second == pytest.approx(whole, rel=1e-5)
    written = b"".join(generate(model.artifact, b"The river", num_tokens=5, temperature=0)).decode()
    likely, unlikely = model.loglikelihood(requests("loglikelihood", ("The river", written), ("The river", " 1984 1984 1984")))
    assert likely[1]
    assert not unlikely[1]
    assert likely[0] > unlikely[0]


def test_generation_stops_where_it_is_told(model) -> None:
    (free,) = model.generate_until(requests("generate_until", ("The river", {"until": [], "max_gen_toks": 30})))
    assert free.encode() == b"".join(generate(model.artifact, b"The river", num_tokens=30, temperature=0))
    stop = free[5:8]
    (cut,) = model.generate_until(requests("generate_until", ("The river", {"until": [stop], "max_gen_toks": 30})))
    assert cut == free[: free.index(stop)]
