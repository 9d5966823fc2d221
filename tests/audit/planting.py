"""What tests of the audit plant faults with."""

from __future__ import annotations

import json

import numpy as np

from bytefit.data.shards import TokenStream


def verdicts(findings) -> dict[int, str]:
    return {finding.number: finding.verdict for finding in findings}


def edit(path, change) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def stream(tokens) -> TokenStream:
    return TokenStream([np.asarray(tokens).astype(np.uint16)])
