"""The table of systems: every recipe at lab size on the same text, with the same clock and the same cap.

    python benchmarks/systems.py speed --data web
    OMP_NUM_THREADS=1 python benchmarks/systems.py run --data web --workers 2

The clock is 300 s of training on two cores, turned into steps by ``speed`` (``timed.py`` says why). Each run is fitted to 1,000,000 bytes
with everything inside, scored on the first MB of validation text (whole documents), proven and audited. Where ``as_submitted`` differs from
a recipe it has rows of its own, of as many steps: of one seed the two forms begin with the same weights and end at the same place in the
text (but #1171's, whose loader knows that held-out text is missing), so that their difference is what differs in them.
"""

from timed import Entry, main

from bytefit.recipes import AS_SUBMITTED, RECIPES

REPAIRED = {name: Entry(name, name) for name in RECIPES if not name.endswith(AS_SUBMITTED)}
SUBMITTED = [Entry(name, name, paced_by=REPAIRED[name.removesuffix(AS_SUBMITTED)]) for name in RECIPES if name not in REPAIRED]
SYSTEMS = [*REPAIRED.values(), *SUBMITTED]

if __name__ == "__main__":
    main(SYSTEMS, "systems", __doc__)
