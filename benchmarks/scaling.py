"""Bits per byte against artifact bytes, L(N), and against training seconds: ``pocket`` at lab size.

    python benchmarks/scaling.py speed --data web
    OMP_NUM_THREADS=1 python benchmarks/scaling.py run --data web --workers 2

For each N the width and the hashed table are such that weights have three to five bits each in N bytes; everything else is the recipe's,
and so are 300 s of training on two cores. Then, at a million bytes, less and more time. ``pocket`` as it is, a million bytes and 300 s, has
its rows in the table of systems; ``speed`` turns the clock into steps by how fast the others are beside it (``timed.py`` says why).
"""

from timed import Entry, main


def of_bytes(budget: int, dim: int, num_heads: int, buckets: int) -> Entry:
    heads = (f"model.attention.{name}={num_heads}" for name in ("num_heads", "num_kv_heads"))
    return Entry(
        f"{budget // 1000} kB", "pocket", (f"pack.budget_bytes={budget}", f"model.dim={dim}", *heads, f"model.bigram.buckets={buckets}")
    )


SIZES = [of_bytes(250_000, 96, 2, 1024), of_bytes(500_000, 128, 2, 2048), of_bytes(2_000_000, 256, 4, 8192)]
TIMES = [Entry(f"{seconds} s", "pocket", seconds=seconds) for seconds in (75, 150, 600)]

if __name__ == "__main__":
    main([*SIZES, *TIMES], "scaling", __doc__, beside=Entry("pocket", "pocket"))
