#!/usr/bin/env bash
# What can only be measured where a GPU is at hand, in this order:
#   1. the forest law on the card (compiled FlexAttention): bench/gpu_forest.py
#   2. SFT, DPO and GRPO at the shapes of Llama 3.2 1B and 3.1 8B, rows of 4,096 tokens, beside TRL: bench/gpu_train.py
#   3. recipes/smollm2-135m.toml end to end, with its table (TERCET_MIRROR names local files where there is no hub)
#
#   bench/gpu.sh                  all of it; bench/results/gpu.json keeps the figures
#   bench/gpu.sh --dry            the same scripts with tiny shapes on the CPU, in a few minutes; nothing is kept
#   bench/gpu.sh --shapes 1b --methods sft dpo --steps 8     options of step 2
#
# PYTHON chooses the interpreter (python3). Where it lacks what Tercet needs, an environment bench/.gpu-venv is made on
# top of it, which keeps its torch. Without a package index what is there is used, and what is missing is named: the
# first two steps need torch, transformers and a few small packages. TRL is measured where it is, and never installed.
set -euo pipefail
cd "$(dirname "$0")/.."

dry=
if [ "${1:-}" = --dry ]; then
    dry=--dry
    shift
    export OMP_NUM_THREADS=1
fi
export TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"

missing() { # PYTHON NAME...: the modules that interpreter lacks
    local python=$1
    shift
    "$python" - "$@" <<'PY'
import importlib.util, sys
print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None))
PY
}

site() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

environment() { # make bench/.gpu-venv on top of an interpreter, which may be an environment itself
    local venv=bench/.gpu-venv
    [ -f "$venv/.ready" ] && return 0
    rm -rf "$venv"
    "$python" -m venv --system-site-packages "$venv" &&
        site "$python" >"$(site "$venv/bin/python")/below.pth" &&
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --retries 1 --timeout 10 -e '.[lora]' &&
        touch "$venv/.ready"
}

need=(torch transformers tokenizers safetensors numpy pyarrow pydantic rich jinja2 huggingface_hub httpx2 gguf sympy)
whole=("${need[@]}" datasets emoji langdetect math_verify nltk syllapy)

python=${PYTHON:-python3}
if [ -n "$(missing "$python" "${whole[@]}" peft)" ]; then
    if environment; then
        python=$PWD/bench/.gpu-venv/bin/python
    else
        echo "could not install what Tercet needs; going on with what $python has"
    fi
fi
lacking=$(missing "$python" "${need[@]}")
if [ -n "$lacking" ]; then
    echo "missing: $lacking; install them for $python and run again" >&2
    exit 1
fi
if [ -z "$dry" ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "torch of $python sees no CUDA device; bench/gpu.sh --dry tries the scripts without one" >&2
    exit 1
fi
"$python" -c 'import sys, torch, transformers as t
print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, transformers {t.__version__}")'
if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
fi

printf '\n== 1. the forest law\n'
status=0
"$python" bench/gpu_forest.py $dry || status=1

printf '\n== 2. training at real shapes\n'
"$python" bench/gpu_train.py $dry "$@" || status=1

recipe=recipes/smollm2-135m.toml
[ -n "$dry" ] && recipe=recipes/tiny.toml
printf '\n== 3. %s\n' "$recipe"
lacking=$(missing "$python" "${whole[@]}")
if [ -n "$lacking" ]; then
    echo "skipped; missing: $lacking"
elif [ -n "$dry" ]; then
    "$python" -m tercet plan recipes/smollm2-135m.toml
    store=$(mktemp -d)
    trap 'chmod -R u+w "$store"; rm -rf "$store"' EXIT
    "$python" -m tercet run "$recipe" --store "$store"
else
    time "$python" -m tercet run "$recipe"
fi
exit $status
