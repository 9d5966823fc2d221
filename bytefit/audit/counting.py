"""Classes 2 and 15 to 25: the targets that are scored, the bytes that a score is divided by, and the text that it is of."""

from __future__ import annotations

import numpy as np

from bytefit.audit.evidence import Evidence
from bytefit.audit.findings import Finding, failed, judged, passed, skipped
from bytefit.audit.probes import Answer
from bytefit.data.byte_table import ByteTable
from bytefit.data.tokenizer import BOS_ID, SPACE_MARK, SentencePieceTokenizer, Tokenizer

CONTEST_DOCUMENTS = 50_000  # of the contest's validation split


def check_counting(run: Evidence) -> list[Finding]:
    spaces, pieces, boundary = table_answers(run.dataset.byte_table, run.dataset.tokenizer)
    recount = _recount(run)
    return [
        _each_once(run),
        judged(15, spaces.holds and recount.holds, f"{spaces.evidence}; {recount.evidence}"),
        judged(16, pieces.holds, pieces.evidence),
        judged(17, boundary.holds, boundary.evidence),
        _operators(run, recount),
        _lossless(run),
        _whole_split(run),
        *_tail(run),
        _documents_begin(run),
        _overlap(run),
        _trained_on(run),
    ]


def _each_once(run: Evidence) -> Finding:
    wanted = len(run.tokens) - 1
    for name in run.scored:
        blocks = sum(block[0] for block in run.scores[name].get("blocks", []))
        for what, count in (("targets", run.scores[name]["targets"]), ("targets in blocks", blocks)):
            if count != wanted:
                return failed(2, f"{name}: {count:,} {what}; the text has {wanted:,}")
    return judged(2, bool(run.scored), f"{', '.join(run.scored)}: {wanted:,} targets each, every one once")


def table_answers(table: ByteTable, tokenizer: Tokenizer) -> tuple[Answer, Answer, Answer]:
    """Of the three ways in which a table of bytes goes wrong: spaces, byte pieces, and a missing word boundary.

    Every id is counted after an ordinary id and compared with the bytes that it decodes to.
    """
    ids = np.arange(tokenizer.vocab_size)
    plain = np.flatnonzero(~tokenizer.is_control)
    after = np.full(len(ids), plain[0] if len(plain) else 0)
    counted = table.count(ids, after)
    real = np.array([len(data) for data in tokenizer.token_bytes])
    if isinstance(tokenizer, SentencePieceTokenizer):  # which does not always have a piece for every byte
        byte_ids = np.flatnonzero(tokenizer.is_byte)
    else:
        byte_ids = np.array(sorted(set(tokenizer.byte_ids)), dtype=np.int64)
    wrong_bytes = byte_ids[counted[byte_ids] != 1]
    others = np.setdiff1d(plain, byte_ids)
    spaced = np.array([i for i in others if tokenizer.token_bytes[i].startswith(b" ")], dtype=np.int64)
    twice = spaced[counted[spaced] > real[spaced]]
    first = f"; the first is id {twice[0]}, {tokenizer.token_bytes[twice[0]]!r}: {counted[twice[0]]}" if len(twice) else ""
    missing = others[counted[others] < real[others]]
    less = f"; the first is id {missing[0]}, {tokenizer.token_bytes[missing[0]]!r}: {counted[missing[0]]}" if len(missing) else ""
    lacks = isinstance(tokenizer, SentencePieceTokenizer) and not any(piece.startswith(SPACE_MARK) for piece in tokenizer.pieces)
    return (
        Answer(not len(twice), f"{len(twice)} of {len(spaced)} ids with a leading space count more bytes than they stand for{first}"),
        Answer(not len(wrong_bytes), f"{len(wrong_bytes)} of {len(byte_ids)} byte pieces count something else than one byte"),
        Answer(not len(missing) and not lacks, f"{len(missing)} ids count fewer bytes than they stand for{less}"),
    )


def _recount(run: Evidence) -> Answer:
    """Counted bytes against the text that the same tokens decode to."""
    real = len(run.dataset.tokenizer.decode(run.tokens.tolist()))
    what = "in the text"
    claimed = {name: int(run.scores[name]["bytes"]) for name in run.scored}
    if not run.dataset.tokenizer.lossless:
        # The contest's rule counts a space where the detokeniser drops one only at a boundary; it is the table's own sum that must hold.
        real, what = int(run.counts.sum()), "by the contest's table, whose tokenizer does not give back every byte"
    wrong = {name: count for name, count in claimed.items() if count != real}
    if wrong:
        name, count = next(iter(wrong.items()))
        return Answer(False, f"{name} divides by {count:,} bytes; there are {real:,} {what} ({count / real - 1:+.2%})")
    return Answer(bool(claimed), f"{real:,} bytes counted, and as many {what}")


def _operators(run: Evidence, recount: Answer) -> Finding:
    """Symbols that stand for an operation on the text (upper case, say) are not bytes of it. Of a dataset that was built here class 19 says
    whether its bytes are the documents'; of shards nobody knows what was done to the text before."""
    tokenizer, built = run.dataset.tokenizer, bool(run.dataset.record)
    pieces = tokenizer.pieces if isinstance(tokenizer, SentencePieceTokenizer) and not built else []
    private = [piece for piece in pieces if any("\ue000" <= character <= "\uf8ff" for character in piece)]
    if private:
        return failed(18, f"{len(private)} pieces hold characters of private use, as operators on case do; the first is {private[0]!r}")
    return judged(18, recount.holds, f"no operator symbols; {recount.evidence}")


def _lossless(run: Evidence) -> Finding:
    split = run.dataset.record.get("splits", {}).get("val", {})
    if not split:
        return skipped(19, "contest shards: the documents that they were made from are not here")
    raw, counted = split["raw_bytes"], split["counted_bytes"]
    lossless = run.dataset.tokenizer.lossless
    gives = "gives back" if lossless else "does not give back"
    evidence = f"{raw:,} bytes in the documents, {counted:,} counted; the tokenizer {gives} every byte"
    return judged(19, raw == counted, evidence)


def _whole_split(run: Evidence) -> Finding:
    known = run.env.get("dataset_sha256"), run.scores.get("dataset_sha256")
    if any(sha is not None and sha != run.dataset.sha256 for sha in known):
        return failed(20, f"trained on dataset {known[0]}, scored on {known[1]}; here is {run.dataset.sha256}")
    size, limit, built = int(run.counts.sum()), run.recipe.score.max_bytes, bool(run.dataset.record)
    if limit is not None and run.recipe.size == "full":
        return failed(20, f"only {size:,} bytes are scored (score.max_bytes {limit:,}); the contest's size takes the whole split")
    if not built:
        starts = int((run.dataset.val.all() == BOS_ID).sum())
        evidence = f"contest shards with {starts:,} documents, of {CONTEST_DOCUMENTS:,}; no hashes to compare with"
        return judged(20, starts == CONTEST_DOCUMENTS, evidence) if run.recipe.size == "full" else skipped(20, evidence)
    what = "the whole split" if limit is None else f"whole documents up to {limit:,} bytes, as the recipe says"
    return passed(20, f"{what}: {size:,} bytes; the validation shards have the hashes that they were built with")


def _tail(run: Evidence) -> tuple[Finding, Finding]:
    wanted = len(run.tokens) - 1
    counts = {name: int(run.scores[name]["targets"]) for name in run.scored}
    short = {name: count for name, count in counts.items() if count < wanted}
    over = {name: count for name, count in counts.items() if count > wanted}
    evidence = f"{wanted:,} targets in the text; scored: {', '.join(f'{name} {count:,}' for name, count in counts.items())}"
    return judged(21, bool(counts) and not short, evidence), judged(22, bool(counts) and not over, evidence)


def _documents_begin(run: Evidence) -> Finding:
    starts = int((run.dataset.val.all() == BOS_ID).sum())
    wanted = run.dataset.record.get("splits", {}).get("val", {}).get("documents")
    good = run.tokens[0] == BOS_ID and (wanted is None or wanted == starts)
    return judged(23, bool(good), f"{starts:,} BOS in the validation split" + ("" if wanted is None else f", {wanted:,} documents"))


def _overlap(run: Evidence) -> Finding:
    shared, total = run.shared_documents
    return judged(24, shared == 0, f"{shared:,} of {total:,} validation documents stand, token for token, among the training documents")


def _trained_on(run: Evidence) -> Finding:
    train, val = run.dataset.record.get("splits", {}).get("train", {}), run.dataset.record.get("splits", {}).get("val", {})
    same = bool(train) and train.get("documents_sha256") == val.get("documents_sha256")
    if same or run.shared_documents[0] == run.shared_documents[1]:
        return failed(25, "every validation document stands among the training documents")
    return passed(25, "the training split is not the validation split")
