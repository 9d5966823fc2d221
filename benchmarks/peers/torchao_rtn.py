"""Round-to-nearest of one weight matrix by torchao, ``IntxWeightOnlyConfig`` with one scale per row.

Its environment (Python 3.11; the CPU build of torch is enough):

    python3 -m venv PEERS/torchao
    PEERS/torchao/bin/pip install torch==2.13.0 numpy torchao==0.18.0

and then

    PEERS/torchao/bin/python benchmarks/peers/torchao_rtn.py IN.npz OUT.npz [--no-clipping]

IN: ``W`` (out, in) in float32, ``bits`` from 1 to 8. OUT: ``W_hat`` (dequantised, float32), ``codes`` (int8), ``scale`` (out,),
``zero_point``, ``seconds`` (the ``quantize_`` call alone: the median of 3 after one that is not counted), ``threads``.

The grid is ``scale * [-2**(bits-1), 2**(bits-1) - 1]`` with ``scale = max|w| / ((2**bits - 1) / 2)`` of the row; with
``--no-clipping`` (torchao's ``SYMMETRIC_NO_CLIPPING_ERR``) the scale is the larger of ``-min / 2**(bits-1)`` and
``max / (2**(bits-1) - 1)``, so that no value lies outside.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from peer import bits_of, finish, missing, seconds_of

try:
    import numpy as np
    import torch
    from torchao.quantization import IntxWeightOnlyConfig, PerAxis, quantize_
    from torchao.quantization.quant_primitives import MappingType
except ImportError as error:
    missing(error, __file__)


def linear_of(weight: torch.Tensor) -> torch.nn.Sequential:
    """A model of one linear layer: torchao changes layers inside a model."""
    module = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    return torch.nn.Sequential(module)


def main() -> None:
    parser = argparse.ArgumentParser(description="round-to-nearest of one matrix by torchao")
    parser.add_argument("given", type=Path, metavar="IN.npz")
    parser.add_argument("out", type=Path, metavar="OUT.npz")
    parser.add_argument("--no-clipping", action="store_true", help="take the symmetric mapping that clips nothing")
    options = parser.parse_args()

    given = np.load(options.given)
    weight = torch.from_numpy(given["W"]).float()
    config = IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{bits_of(given)}"),
        granularity=PerAxis(0),
        mapping_type=MappingType.SYMMETRIC_NO_CLIPPING_ERR if options.no_clipping else MappingType.SYMMETRIC,
    )

    def quantized(model: torch.nn.Sequential) -> torch.Tensor:
        quantize_(model, config)
        return model[0].weight

    with torch.no_grad():
        tensor, seconds = seconds_of(quantized, lambda: linear_of(weight))
        restored = tensor.dequantize()
    finish(
        options.out,
        {
            "W_hat": restored.numpy(),
            "codes": tensor.qdata.numpy(),
            "scale": tensor.scale.flatten().numpy(),
            "zero_point": tensor.zero_point.flatten().numpy(),
            "seconds": seconds,
            "threads": torch.get_num_threads(),
        },
        "torchao",
        torch=torch.__version__,
    )


if __name__ == "__main__":
    main()
