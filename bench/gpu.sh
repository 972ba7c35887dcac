#!/usr/bin/env bash
# What can only be measured on a card, within 15 minutes: bench/gpu.py, one process. See there for what it does.
#
#   bench/gpu.sh                  laws and cells; bench/results/gpu.json has each as soon as it is known
#   bench/gpu.sh --dry            the same in tiny shapes on the CPU, in a few minutes; nothing is kept
#   bench/gpu.sh --only law --minutes 5 --out FILE      options of bench/gpu.py
#
# PYTHON chooses the interpreter (python3): it needs torch and transformers for the laws, and for the cells also what
# recipes are made with (pydantic among it). WHEELS names a folder of wheels that are put beside it first, for machines
# without a package index: nothing of that interpreter changes. Beside TRL, SFT, DPO and GRPO are measured by
# bench/gpu_train.py, which is not part of this.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
export TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 PYTHONPATH="$PWD/src:$PWD/bench${PYTHONPATH:+:$PYTHONPATH}"
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
if [ -n "${WHEELS:-}" ]; then
    beside=$(mktemp -d)
    trap 'rm -rf "$beside"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$beside" "$WHEELS"/*.whl
    export PYTHONPATH="$beside:$PYTHONPATH"
fi
if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
fi
"$python" bench/gpu.py "$@"
