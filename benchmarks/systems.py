"""The table of systems: every recipe at lab size on the same text, with the same clock and the same cap.

    python benchmarks/systems.py speed --data web
    OMP_NUM_THREADS=1 python benchmarks/systems.py run --data web --workers 2

The clock is 300 s of training on two cores, turned into steps by ``speed`` (``timed.py`` says why). Each run is fitted to 1,000,000 bytes
with everything inside, scored on the first MB of validation text (whole documents), proven and audited. Where ``as_submitted`` differs from
a recipe it has rows of its own.
"""

from timed import Entry, main

from bytefit.recipes import AS_SUBMITTED, RECIPES

SYSTEMS = [Entry(name, name) for name in sorted(RECIPES, key=lambda name: name.endswith(AS_SUBMITTED))]

if __name__ == "__main__":
    main(SYSTEMS, "systems", __doc__)
