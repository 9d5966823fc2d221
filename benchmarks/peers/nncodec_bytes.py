"""Weight matrices, or given integer codes, as bytes by nncodec, an implementation of the NNC standard (ISO/IEC 15938-17).

Its environment (Python 3.11 and a C++ compiler). Only the codec itself is used, which needs numpy alone; what nncodec requires beyond
it (torch, torchvision, OpenCV, ...) is for reading models and data sets, and is left out:

    python3 -m venv PEERS/nncodec
    PEERS/nncodec/bin/pip install "numpy<2"
    PEERS/nncodec/bin/pip install --no-deps nncodec==2.1.3

and then

    PEERS/nncodec/bin/python benchmarks/peers/nncodec_bytes.py IN.npz OUT.npz [--qp -32 -28 ...] [--quantizer both|trellis|plain]
    PEERS/nncodec/bin/python benchmarks/peers/nncodec_bytes.py IN.npz OUT.npz --codes [--unary 11 16 ...]

IN: any number of float32 matrices under any names. Each is quantised with one step for the whole matrix,
``step = (4 + qp % 4) * 2**(qp // 4 - 2)``, with dependent (trellis) quantisation and without, and coded with the adaptive binary
arithmetic coder (DeepCABAC); ``--lambda-scale`` above 0 lets the quantiser weigh rate against error. An array of one dimension gets the
library's own finer step.

With ``--codes`` the arrays hold whole numbers, which nncodec codes as they are: it takes int32 arrays without quantising them.

OUT has one entry per setting, i = 0, 1, ...: ``qp``, ``step``, ``trellis``, ``lambda_scale``, ``unary`` (flags before the escape
code; the library's default is 11), ``bytes`` (the whole bitstream), ``payload_bytes`` (of these, arithmetic-coded; the rest are
headers), ``seconds_encode`` (with the quantisation), ``seconds_decode``; ``exact`` (with ``--codes``: every code came back as it was);
without ``--codes``, ``i/NAME`` are the matrices that the bitstream restores to.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import time
from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

from peer import finish, missing

# ``nnc`` also imports the readers of PyTorch and TensorFlow models and of their data sets, which nothing here calls: an empty module
# stands in for them, so that torch and torchvision need not be there.
framework = ModuleType("nncodec.framework")
framework.tensorflow_model = framework.pytorch_model = framework.use_case_init = None
sys.modules["nncodec.framework"] = framework

try:
    import numpy as np
    from nncodec import nnc
    from nncodec.nnc_core import coder
except ImportError as error:
    missing(error, __file__)

DENSITY = 2  # steps per octave, as a power of two: the library's default


def step_of(qp: int) -> float:
    steps = 2**DENSITY
    return (steps + qp % steps) * 2.0 ** (qp // steps - DENSITY)


def header_bytes(bitstream: bytearray) -> int:
    """How many bytes of the stream are headers, as the library's own decoder counts them."""
    info: Any = defaultdict(lambda: defaultdict(dict))
    counts: dict[str, Any] = {}
    coder.decode(bitstream, info, hls_stats=counts)
    return sum(sum(count) if isinstance(count, list) else count for count in counts.values())


def coded(arrays: dict[str, np.ndarray], **setting: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays restored from their bitstream, and what it cost."""
    start = time.perf_counter()
    bitstream = nnc.compress(arrays, bitstream_path=None, return_bitstream=True, qp_density=DENSITY, row_skipping=True, **setting)
    encoded = time.perf_counter()
    restored = nnc.decompress(bitstream)
    decoded = time.perf_counter()
    return restored, {
        "bytes": len(bitstream),
        "payload_bytes": len(bitstream) - header_bytes(bitstream),
        "seconds_encode": encoded - start,
        "seconds_decode": decoded - encoded,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="matrices or codes as bytes by nncodec")
    parser.add_argument("given", type=Path, metavar="IN.npz")
    parser.add_argument("out", type=Path, metavar="OUT.npz")
    parser.add_argument("--codes", action="store_true", help="the arrays are integer codes, to be coded as they are")
    parser.add_argument("--qp", type=int, nargs="+", default=[-32], help="quantisation parameters; 4 more doubles the step")
    parser.add_argument("--quantizer", choices=("both", "trellis", "plain"), default="both")
    parser.add_argument("--lambda-scale", type=float, nargs="+", default=[0.0], help="weight of the rate when quantising")
    parser.add_argument("--unary", type=int, nargs="+", default=[11], help="flags for the size of a code before the escape code")
    options = parser.parse_args()

    given = np.load(options.given)
    names = given.files
    # The names go into the bitstream, so they are made as short as can be.
    if options.codes:
        arrays = {str(i): given[name].astype(np.int32) for i, name in enumerate(names)}
        if not all(np.array_equal(given[name], arrays[str(i)]) for i, name in enumerate(names)):
            sys.exit("--codes: the arrays must hold whole numbers")
        trellis, qps, lambdas = [False], [0], [0.0]  # whole numbers are not quantised
    else:
        arrays = {str(i): given[name].astype(np.float32) for i, name in enumerate(names)}
        trellis = {"both": [False, True], "trellis": [True], "plain": [False]}[options.quantizer]
        qps, lambdas = options.qp, options.lambda_scale

    result: dict[str, Any] = {}
    rows = []
    with contextlib.redirect_stdout(sys.stderr):
        for i, (unary, lambda_scale, qp, use_dq) in enumerate(itertools.product(options.unary, lambdas, qps, trellis)):
            restored, cost = coded(arrays, qp=qp, use_dq=use_dq, lambda_scale=lambda_scale, cabac_unary_length_minus1=unary - 1)
            row = {"qp": qp, "step": step_of(qp), "trellis": use_dq, "lambda_scale": lambda_scale, "unary": unary, **cost}
            if options.codes:
                row["exact"] = all(np.array_equal(restored[key], arrays[key]) for key in arrays)
            else:
                result |= {f"{i}/{name}": restored[str(j)] for j, name in enumerate(names)}
            rows.append(row)
    result |= {key: np.array([row[key] for row in rows]) for key in rows[0]}
    finish(options.out, result, "nncodec", settings=len(rows))


if __name__ == "__main__":
    main()
