"""The checklist: forty ways in which scores went wrong in the Parameter Golf contest, and what an audit says of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["pass", "fail", "not applicable"]

# In groups: order, counting, data, bytes, time, provenance.
CLASSES: dict[int, str] = {
    1: "training on validation text before it is scored",
    2: "several passes over the split, the last or best one reported",
    3: "optimising on the very tokens that are being scored",
    4: "scoring the same tokens again after seeing them",
    5: "the target in the lookup key, or the probability of the target alone",
    6: "a mixture that does not sum to one",
    7: "a mixture over bytes that is no distribution over tokens",
    8: "a gate or choice of expert that looks at the target",
    9: "the best of several predictions chosen after the fact",
    10: "a warm-up that learns from validation tokens",
    11: "calibration on validation text",
    12: "training data read while scoring",
    13: "another forward pass while scoring than while training",
    14: "a leak from one document into another that are said to be apart",
    15: "a space counted twice",
    16: "a byte piece that counts more than a byte",
    17: "the word boundary missing from the vocabulary",
    18: "operator symbols counted as text",
    19: "text normalised before it is counted",
    20: "a validation split that is short, damaged or another one",
    21: "the tail left out",
    22: "the tail scored more than once",
    23: "no BOS where documents begin",
    24: "validation documents among the training documents",
    25: "training on the validation split",
    26: "more bytes than the cap",
    27: "MiB taken for MB",
    28: "another codec than stated",
    29: "code or tables that are needed and not counted",
    30: "other bytes counted than those that are executed",
    31: "training data read after the clock",
    32: "scoring beyond its time",
    33: "work outside the timers",
    34: "other hardware than stated",
    35: "packing outside the timers",
    36: "seeds chosen by their score",
    37: "seeds of different configurations",
    38: "a claim within the noise of one seed",
    39: "what is stated and what was active differ",
    40: "missing files",
}


@dataclass(frozen=True)
class Finding:
    """What an audit says of one class of fault.

    Attributes:
        number: into ``CLASSES``.
        evidence: the figures or files that it rests on, in a line.
    """

    number: int
    verdict: Verdict
    evidence: str

    @property
    def title(self) -> str:
        return CLASSES[self.number]

    def to_json(self) -> dict[str, Any]:
        return {"class": self.number, "title": self.title, "verdict": self.verdict, "evidence": self.evidence}


def passed(number: int, evidence: str) -> Finding:
    return Finding(number, "pass", evidence)


def failed(number: int, evidence: str) -> Finding:
    return Finding(number, "fail", evidence)


def skipped(number: int, evidence: str) -> Finding:
    return Finding(number, "not applicable", evidence)


def judged(number: int, good: bool, evidence: str) -> Finding:
    return Finding(number, "pass" if good else "fail", evidence)
