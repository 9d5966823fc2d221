#!/usr/bin/env bash
# Every recipe at contest size on one NVIDIA GPU: trained for a number of seconds, fitted to 16,000,000 bytes, scored, proven, audited.
#
#     benchmarks/gpu.sh SECONDS DATASET [options of benchmarks/gpu.py]
#     benchmarks/gpu.sh 120 web
#
# Wants a PyTorch with CUDA in the environment and the package's other needs (pyproject.toml).
set -euo pipefail
if [ $# -lt 2 ]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit 2
fi
seconds=$1 data=$(realpath "$2")
shift 2
cd "$(dirname "$0")/.."
exec python benchmarks/gpu.py --seconds "$seconds" --data "$data" "$@"
