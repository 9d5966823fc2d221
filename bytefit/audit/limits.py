"""Classes 26 to 35: bytes and seconds."""

from __future__ import annotations

from bytefit.artifact.container import bytes_by_part
from bytefit.audit.blocks import blocks_again
from bytefit.audit.evidence import Evidence
from bytefit.audit.findings import Finding, failed, judged, skipped
from bytefit.files import read_bytes
from bytefit.quant.calibrate import TrainingText

CONTEST_BYTES = 16_000_000
CONTEST_SECONDS = 600.0
BLOCK_SLACK = 0.1  # nats: a block of a few targets has nothing in which roundings of two machines even out
CLOCK_SLACK = 1.0  # seconds: the last step or batch may end after the clock


def check_limits(run: Evidence) -> list[Finding]:
    size, pack = len(read_bytes(run.folder.artifact)), run.recipe.pack
    left = f" ({pack.code_bytes:,} of the cap of {pack.budget_bytes:,} are left for code)" if pack.code_bytes else ""
    return [
        judged(26, size <= pack.artifact_bytes, f"{size:,} bytes of {pack.artifact_bytes:,}{left}"),
        _decimal(run, size),
        _codec(run),
        skipped(29, "the artifact holds model, tokenizer and settings; code is counted when a submission is made"),
        _executed(run, size),
        _calibration_time(run),
        _scoring_time(run),
        _timers(run),
        _hardware(run),
        _packing_time(run),
    ]


def _decimal(run: Evidence, size: int) -> Finding:
    budget = run.recipe.pack.budget_bytes
    if run.recipe.size != "full":
        return skipped(27, f"the cap is {budget:,} bytes; only the contest's size has a cap of its own")
    return judged(27, budget <= CONTEST_BYTES, f"the cap is {budget:,} bytes; the contest's is {CONTEST_BYTES:,}")


def _codec(run: Evidence) -> Finding:
    stated, found = run.recipe.pack.codec, run.artifact.codec
    return judged(28, stated == found, f"{found} in the artifact, {stated} in the recipe")


def _executed(run: Evidence, size: int) -> Finding:
    """The artifact that was scored is the one that lies here, and its parts are all of it."""
    parts = bytes_by_part(run.sections)
    recorded = run.scores.get("artifact_sha256")
    if recorded != run.artifact.sha256:
        return failed(30, f"score.json is of artifact {str(recorded)[:12]}; here lies {run.artifact.sha256[:12]}")
    if sum(parts.values()) != size or run.pack.get("bytes") != size:
        return failed(30, f"{size:,} bytes lie here; pack.json says {run.pack.get('bytes')}, the parts sum to {sum(parts.values()):,}")
    blocks = list(blocks_again(run))
    wrong = [block for block in blocks if abs(block.now - block.recorded) > 0.002 * block.recorded + BLOCK_SLACK]
    again = ", ".join(f"{b.name} {b.number + 1}: {b.now:.2f} ({b.recorded:.2f} recorded, {b.targets:,} targets)" for b in wrong or blocks)
    return judged(30, not wrong, f"{size:,} bytes; blocks scored again, in nats: {again}")


def _calibration_time(run: Evidence) -> Finding:
    """What reads training text after the loop stands in the clock of training, and has seconds to its name; at the contest's size that
    clock has an end."""
    config, train = run.recipe.calibrate, run.recipe.train
    later = ["average"] if train.chooses_on_text else []
    later += ["calibrate"] if config is not None and isinstance(config.source, TrainingText) else []
    if run.recipe.size == "full" and train.seconds is not None and train.seconds > CONTEST_SECONDS:
        return failed(31, f"trained for {train.seconds:g} s by the clock; the contest's size has {CONTEST_SECONDS:g}")
    if not later:
        return skipped(31, "nothing is chosen or calibrated on training text after training")
    if train.seconds is None:
        return skipped(31, "the run was trained by steps, not by the clock")
    spent = {entry: run.seconds.get(entry, 0.0) for entry in ("train", *later)}
    evidence = f"{', '.join(f'{entry} {seconds:.1f} s' for entry, seconds in spent.items())} in {train.seconds:g} s"
    if sum(spent.values()) > train.seconds + CLOCK_SLACK:
        return failed(31, f"{evidence}; leave more of it with train.reserve_seconds")
    return judged(31, all(spent.values()), evidence)


def _scoring_time(run: Evidence) -> Finding:
    """Of the score that is handed in; the others that a run makes are its own affair."""
    name = run.recipe.score.headline
    spent = float(run.scores.get(name, {}).get("seconds", 0.0))
    if run.recipe.size != "full":
        return skipped(32, f"{spent:.1f} s of scoring ({name}); only the contest's size has a limit")
    return judged(32, 0 < spent <= CONTEST_SECONDS, f"{spent:.1f} s of scoring ({name}), {CONTEST_SECONDS:g} s allowed")


def _timers(run: Evidence) -> Finding:
    """What was done has seconds to its name."""
    wanted = ["train", "fit" if run.recipe.pack.fit else "encode", "score"]
    wanted += ["calibrate"] if run.recipe.calibrate is not None else []
    wanted += ["adapt"] if run.recipe.score.adapt is not None else []
    wanted += ["prove"] if run.recipe.score.proof_bytes else []
    missing = [entry for entry in wanted if not run.seconds.get(entry)]
    seconds = ", ".join(f"{entry} {run.seconds[entry]:.1f}" for entry in wanted if entry not in missing)
    totals = ", ".join(f"{total} {run.seconds.get(total, 0.0):.1f}" for total in ("strict", "customary"))
    return judged(33, not missing, f"seconds: {seconds}; {totals}" + (f"; no seconds of {', '.join(missing)}" if missing else ""))


def _hardware(run: Evidence) -> Finding:
    keys = ("cpu", "cpu_bf16", "gpu", "threads", "ranks", "until_step")
    real = [run.state.get("machine", {}), *run.state.get("earlier_machines", [])]
    stated = [run.summary.get("hardware", {}), *run.summary.get("earlier_hardware", [])]
    told = [f"{m.get('gpu') or m.get('cpu')} (ranks: {m.get('ranks')}, threads: {m.get('threads')})" for m in real]
    until = [f" to step {machine['until_step']:,}" if "until_step" in machine else "" for machine in real]
    evidence = "trained on " + ", before that on ".join(name + end for name, end in zip(told, until, strict=True))
    if len(stated) != len(real):
        return failed(34, f"{evidence}; the summary names {len(stated)} machines")
    differs = [key for key in keys for said, was in zip(stated, real, strict=True) if said.get(key) != was.get(key)]
    return judged(34, bool(real[0]) and not differs, evidence + (f"; the summary has another {', '.join(differs)}" if differs else ""))


def _packing_time(run: Evidence) -> Finding:
    spent = sum(run.seconds.get(entry, 0.0) for entry in ("calibrate", "quantise", "fit", "encode"))
    strict = run.seconds.get("strict", 0.0)
    return judged(35, 0 < spent <= strict, f"{spent:.1f} s of packing are among {strict:.1f} strict seconds")
