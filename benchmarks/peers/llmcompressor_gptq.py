"""GPTQ of one weight matrix by llm-compressor, at the level of its tensor function ``quantize_weight``.

Its environment (Python 3.11; the CPU build of torch is enough):

    python3 -m venv PEERS/llmcompressor
    PEERS/llmcompressor/bin/pip install torch==2.13.0 llmcompressor==0.14.0.1

and then

    PEERS/llmcompressor/bin/python benchmarks/peers/llmcompressor_gptq.py IN.npz OUT.npz [--no-actorder] [--observer memoryless_mse]

IN: ``W`` (out, in) and ``X`` (tokens, in) in float32, ``bits``. OUT: ``W_hat`` (dequantised, float32), ``codes`` (int8), ``scale``
(out,), ``zero_point`` 0, ``seconds`` (the quantise call alone, with the scales given: the median of 3 after one that is not counted),
``seconds_hessian``, ``seconds_scale``, ``rounded_only`` (true when it gave up on the Hessian and rounded to nearest), ``threads``.

The library's own pieces throughout: its accumulation of the Hessian, its observer for the scales (by default the one it takes for
weights, minimum and maximum per row), symmetric quantisation per channel, blocks of 128, dampening 0.01, columns by activation order.
The grid is ``scale * [-2**(bits-1), 2**(bits-1) - 1]`` with ``scale = max|w| / ((2**bits - 1) / 2)`` of the row.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from peer import bits_of, finish, missing, seconds_of

try:
    with contextlib.redirect_stdout(sys.stderr):  # where the library keeps sending its log lines
        import numpy as np
        import torch
        from compressed_tensors.quantization import QuantizationArgs
        from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
        from llmcompressor.modifiers.gptq.helpers import accumulate_hessian, make_empty_hessian
        from llmcompressor.observers import Observer
except ImportError as error:
    missing(error, __file__)


def hessian_of(module: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    hessian, samples = accumulate_hessian(inputs, module, make_empty_hessian(module), torch.zeros(()))
    return hessian / samples


def main() -> None:
    parser = argparse.ArgumentParser(description="GPTQ of one matrix by llm-compressor")
    parser.add_argument("given", type=Path, metavar="IN.npz")
    parser.add_argument("out", type=Path, metavar="OUT.npz")
    parser.add_argument("--no-actorder", action="store_true", help="columns in their own order, not by activation")
    parser.add_argument("--observer", default="memoryless_minmax", help="how the scales are chosen (memoryless_minmax, memoryless_mse)")
    options = parser.parse_args()

    given = np.load(options.given)
    weight, inputs = torch.from_numpy(given["W"]).float(), torch.from_numpy(given["X"]).float()
    args = QuantizationArgs(
        num_bits=bits_of(given),
        type="int",
        symmetric=True,
        strategy="channel",
        actorder=None if options.no_actorder else "weight",
        observer=options.observer,
    )
    module = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight.data = weight

    with torch.no_grad():
        hessian, seconds_hessian = seconds_of(lambda rows: hessian_of(module, rows), lambda: inputs)
        scales, seconds_scale = seconds_of(
            lambda observer: observer(weight).get_qparams(),
            lambda: Observer.load_from_registry(args.observer, base_name="weight", args=args),
        )
        scale, zero_point = scales["scale"], scales["zero_point"]
        # quantize_weight works in place on the weights and the Hessian it is given, so each call gets its own.
        (quantized, _, rounded_only), seconds = seconds_of(
            lambda copies: quantize_weight(
                weights=copies[0],
                hessians=copies[1],
                scale=scale[None],
                zero_point=zero_point[None],
                global_scale=None,
                quant_args=args,
                blocksize=128,
                percdamp=0.01,
            ),
            lambda: (weight[None].clone(), hessian[None].clone()),
        )
    codes = torch.round(quantized[0] / scale)
    finish(
        options.out,
        {
            "W_hat": quantized[0].numpy(),
            "codes": codes.to(torch.int8).numpy(),
            "scale": scale.flatten().numpy(),
            "zero_point": 0,
            "seconds": seconds,
            "seconds_hessian": seconds_hessian,
            "seconds_scale": seconds_scale,
            "rounded_only": bool(rounded_only[0]),
            "threads": torch.get_num_threads(),
        },
        "llmcompressor",
        torch=torch.__version__,
    )


if __name__ == "__main__":
    main()
