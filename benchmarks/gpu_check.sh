#!/usr/bin/env bash
# Everything that needs a GPU, in less than eight minutes and without network: build for this GPU, the GPU tests, a short
# set under compute-sanitizer, the benchmark. Every step runs whatever became of the one before, unless there is nothing
# to run; the exit code is 1 if one failed.
#
#   PYTHON  one that has torch with CUDA, NumPy, setuptools, wheel, pybind11, ninja and pytest; python3 by default
#   OUT     where gpu-<name>.json and gpu-<name>.md are written; benchmarks/results by default
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-benchmarks/results}
export PYTHONUNBUFFERED=1 TWOLAYER_REQUIRE_NATIVE=1 TWOLAYER_CUDA=1
failed=()

# step NAME SECONDS COMMAND...: run it, for so long at most, and remember whether it failed
step() {
    local name=$1 seconds=$2 status
    shift 2
    echo "== $name (after $SECONDS s)"
    timeout --kill-after=5 "$seconds" "$@"
    status=$?
    ((status == 124)) && echo "$name took more than $seconds s"
    ((status == 0)) || failed+=("$name")
    return "$status"
}

# under TOOL TESTS: those tests under compute-sanitizer, which not every machine lets at its GPU
under() {
    local log
    if ! command -v compute-sanitizer >/dev/null; then
        echo "== $1: SKIPPED, there is no compute-sanitizer"
        return
    fi
    log=$(mktemp)
    if ! step "$1" 75 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 9 \
        "$python" -m pytest -q -p no:cacheprovider tests/cuda/test_cuda_ops.py -k "$2" >"$log" 2>&1 \
        && grep -q "Device not supported" "$log"; then
        unset 'failed[-1]'
        echo "$1: SKIPPED, compute-sanitizer cannot work with this machine's GPU" >>"$log"
    fi
    tail -n 40 "$log"
    rm "$log"
}

arch='import torch; a, b = torch.cuda.get_device_capability(); print(f"{a}{b}" + "a" * (a == 9))'
TWOLAYER_CUDA_ARCHS=$("$python" -c "$arch") || { echo "there is no GPU that torch can use" >&2; exit 1; }
export TWOLAYER_CUDA_ARCHS
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader

step "build for sm_$TWOLAYER_CUDA_ARCHS" 150 \
    "$python" -m pip install --quiet --no-build-isolation --no-deps --editable . || exit 1
loaded='from twolayer import _native; print(_native.info()); module, reason = _native.cuda_state(); assert module, reason'
step "load" 60 "$python" -c "$loaded" || exit 1
step "tests" 150 "$python" -m pytest -q -p no:cacheprovider tests/cuda/test_cuda_ops.py tests/cuda/test_cuda_state.py \
    -k "not emulated"
short="not emulated and (test_table and (7-17-33-5 or 50-31-67-65) and tanh or test_strided)"
under memcheck "$short"
under racecheck "$short"
step "benchmark" 240 "$python" -m twolayer.bench.gpu --out "$out" --seconds 200

echo "== done after $SECONDS s; failed: ${failed[*]:-nothing}"
((${#failed[@]} == 0))
