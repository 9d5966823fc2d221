"""What the audit says of a proof that proves little."""

from __future__ import annotations

import json
import shutil

from bytefit.audit.evidence import Evidence
from bytefit.audit.proof import check_proof
from bytefit.run.folder import RunFolder
from tests.audit.planting import verdicts


def test_a_proof_of_a_few_bytes_says_nothing(finished, dataset, tmp_path) -> None:
    """Its slack of 64 bits would cover anything; nor does one in which nothing was learned say that both sides learn alike."""
    folder = RunFolder(shutil.copytree(finished.path, tmp_path / "run"))
    proof = json.loads(folder.proof.read_text())
    assert proof["learned_steps"] > 0
    for changes in ({"expected_bits": 2000.0}, {"learned_steps": 0}):
        for holds, verdict in ((True, "not applicable"), (False, "fail")):
            folder.proof.write_text(json.dumps(proof | changes | {"holds": holds}))
            assert verdicts(check_proof(Evidence(folder, folder.read_recipe(), dataset)))[13] == verdict
