#!/usr/bin/env bash
# Every recipe at contest size on NVIDIA GPUs: trained for a number of seconds, fitted to 16,000,000 bytes, scored, proven, audited.
#
#     benchmarks/gpu.sh SECONDS DATASET [options of benchmarks/gpu.py]
#     benchmarks/gpu.sh 120 web                                          all recipes on one GPU
#     benchmarks/gpu.sh 600 web --gpus 8                                 as the contest does: a process a GPU
#     benchmarks/gpu.sh 60 web --recipes pr578 --max-bytes 1000000 --proof-bytes 0
#                                                                        the short form: one recipe, a slice scored, nothing proven
#     benchmarks/gpu.sh 60 web --recipes pr578 --resume                  the same run, now with more text scored, and proven
#
# Calls for single recipes share benchmarks/results/gpu.jsonl: a line takes the place of an earlier one of the same recipe, size, seed and
# number of GPUs. With --resume a run that was stopped goes on, and a finished one is not trained again.
# Wants a PyTorch with CUDA in the environment and the package's other needs (pyproject.toml).
set -euo pipefail
if [ $# -lt 2 ]; then
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    exit 2
fi
seconds=$1 data=$(realpath "$2")
shift 2
cd "$(dirname "$0")/.."
exec python benchmarks/gpu.py --seconds "$seconds" --data "$data" "$@"
