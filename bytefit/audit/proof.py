"""Classes 11 to 13: the text of calibration, and the proof."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from bytefit.audit.evidence import Evidence
from bytefit.audit.findings import Finding, failed, judged, passed, skipped
from bytefit.errors import UserError
from bytefit.files import read_bytes
from bytefit.quant.calibrate import OwnText
from bytefit.score.adapt import Adapt, DocumentLora
from bytefit.score.compressed import begins_as, coded_bytes, is_of, made_here
from bytefit.score.prove import SLACK_BITS, Proof, cut_documents
from bytefit.train.machine import describe_machine

LEAST_OF_A_PROOF = 0.02  # the slack of a proof may be so much of its bits
DECODED_TOKENS = 2_048  # of a proof, in an audit: each takes a pass through the model
EXCERPT_BYTES = 256  # of a document: so much of it in another text is no chance


def check_proof(run: Evidence) -> list[Finding]:
    return [_calibration(run), _training_data(run), _same_forward_pass(run)]


def _calibration(run: Evidence) -> Finding:
    config = run.recipe.calibrate
    if config is None:
        return skipped(11, "nothing is calibrated")
    if not isinstance(config.source, OwnText):
        return passed(11, f"calibrated on {type(config.source).__name__}, which holds no validation text")
    try:
        text = read_bytes(Path(config.source.path))
    except UserError as error:
        return failed(11, f"what it was calibrated on is gone: {error}")
    inside = [document for document in run.dataset.val_documents() if any(piece in text for piece in pieces_of(document))]
    return judged(11, not inside, f"of {len(inside)} validation documents {EXCERPT_BYTES} bytes or all stand in {config.source.path}")


def pieces_of(document: bytes) -> list[bytes]:
    """What would be found of a document in a text that holds an excerpt of it; nothing of one that says next to nothing."""
    whole = [document] if 64 < len(document) < EXCERPT_BYTES else []
    return whole + [document[i : i + EXCERPT_BYTES] for i in range(0, len(document) - EXCERPT_BYTES + 1, EXCERPT_BYTES)]


def _training_data(run: Evidence) -> Finding:
    if not run.proof:
        return skipped(12, "no proof was made (score.proof_bytes is 0)")
    if run.proof.get("artifact_sha256") != run.artifact.sha256:
        return failed(12, f"proof.json is of artifact {str(run.proof.get('artifact_sha256'))[:12]}; here lies {run.artifact.sha256[:12]}")
    if not run.folder.proof_text.exists():
        return failed(12, f"{run.folder.proof_text.name} is not there; make it again with: bytefit prove {run.folder.path}")
    data, wanted = read_bytes(run.folder.proof_text), run.recipe.score.proof_bytes
    documents = cut_documents(run.dataset.val_documents(wanted), wanted)
    if len(data) != run.proof["bytes_out"] or not is_of(data, run.artifact.sha256, documents):
        return failed(12, f"{run.folder.proof_text.name} is not the validation text compressed to {run.proof['bytes_out']:,} bytes")
    evidence = f"{run.proof['bytes_in']:,} bytes of validation text were restored from this artifact and {len(data):,} bytes alone"
    if not run.proof["restored"]:
        return failed(12, "the text did not come back")
    elsewhere = skipped(12, f"proof.json says that {evidence}; by this version or on this machine they cannot be restored again")
    if not made_here(data):
        return elsewhere
    try:
        tokens = begins_as(run.artifact, data, documents, DECODED_TOKENS)
    except UserError:
        tokens = None
    if tokens is not None:
        return passed(12, f"{evidence}; the first {tokens:,} tokens just now once more")
    # Processors of one class may still differ in last bits, which is no fault of the run.
    here = describe_machine()
    same = all(run.env.get(key) == here.get(key) for key in ("cpu", "cpu_capability", "cpu_bf16"))
    return failed(12, f"{run.folder.proof_text.name} does not begin with the validation text") if same else elsewhere


def _same_forward_pass(run: Evidence) -> Finding:
    if not run.proof:
        return skipped(13, "no proof was made (score.proof_bytes is 0)")
    lacking = [field.name for field in fields(Proof) if field.name not in run.proof]
    if lacking:
        return skipped(
            13, f"proof.json is of an earlier version, without {', '.join(lacking)}; prove it again: bytefit prove {run.folder.path}"
        )
    stated = Proof(**{field.name: run.proof[field.name] for field in fields(Proof)})
    coded = coded_bytes(read_bytes(run.folder.proof_text)) if run.folder.proof_text.exists() else None  # what is wrong there is class 12's
    if coded not in (None, stated.coded_bits // 8) or any(run.proof.get(key) != value for key, value in stated.to_json().items()):
        return failed(13, f"the figures of proof.json do not follow from one another and from {run.folder.proof_text.name}")
    evidence = f"the coder's token-by-token pass and the scorer's agree within {run.proof['agreement']:+.4%}"
    if run.proof["holds"] and LEAST_OF_A_PROOF * run.proof["expected_bits"] < SLACK_BITS:
        return skipped(13, f"{evidence}, but {run.proof['bytes_in']:,} bytes are too few to say anything; raise score.proof_bytes")
    if isinstance(run.recipe.score.coded, Adapt | DocumentLora):
        if run.proof["holds"] and not run.proof["learned_steps"]:
            return skipped(13, f"{evidence}, but nothing was learned in so little text; raise score.proof_bytes")
        evidence += f", with {run.proof['learned_steps']} steps of learning on the way"
    return judged(13, bool(run.proof["holds"]), evidence)
