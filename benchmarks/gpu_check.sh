#!/usr/bin/env bash
# Everything that needs a GPU, in less than ten minutes and without network: build for this GPU, the GPU tests, the
# benchmark, a short set of tests under compute-sanitizer. Every step runs whatever became of the one before, unless
# there is nothing to run; the exit code is 1 if one failed or had no time left.
#
#   PYTHON  one that has torch with CUDA, NumPy, setuptools >= 77, wheel, pybind11, ninja, pytest and pytest-timeout;
#           python3 by default
#   OUT     where gpu-<name>.json, gpu-<name>.md and the sanitizers' logs are written; benchmarks/results by default
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
out=${OUT:-benchmarks/results}
export PYTHONUNBUFFERED=1 TWOLAYER_REQUIRE_NATIVE=1 TWOLAYER_CUDA=1
export PATH="$PATH:${CUDA_HOME:-/usr/local/cuda}/bin"
failed=()

# at_most SECONDS: so many, or as many as are left of all that the steps have together
at_most() {
    local left=$((560 - SECONDS))
    echo $(($1 < left ? $1 : left))
}

# step NAME SECONDS COMMAND...: run it, for so long at most, and remember whether it failed
step() {
    local name=$1 seconds status
    seconds=$(at_most "$2")
    shift 2
    echo "== $name (after $SECONDS s)"
    if ((seconds < 1)); then
        echo "$name: NOT RUN, no time is left"
        failed+=("$name")
        return 1
    fi
    timeout --kill-after=5 "$seconds" "$@"
    status=$?
    ((status == 124)) && echo "$name took more than $seconds s"
    ((status == 0)) || failed+=("$name")
    return "$status"
}

# under TOOL TESTS [OPTION...]: our kernels in those tests under compute-sanitizer, which not every machine lets at its
# GPU
under() {
    local tool=$1 tests=$2 log
    shift 2
    if ! command -v compute-sanitizer >/dev/null; then
        echo "== $tool: SKIPPED, there is no compute-sanitizer"
        return
    fi
    log=$out/gpu-$tool.log
    mkdir -p "$out"
    if ! step "$tool" 60 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 \
        --kernel-name kns=twolayer "$@" \
        "$python" -m pytest -q -p no:cacheprovider tests/cuda/test_cuda_ops.py -k "$tests" >"$log" 2>&1 \
        && grep -q "Device not supported" "$log"; then
        unset 'failed[-1]'
        echo "$tool: SKIPPED, compute-sanitizer cannot work with this machine's GPU" >>"$log"
    fi
    tail -n 40 "$log"
}

needed='"setuptools", "pybind11", "pytest-timeout"'
"$python" -c "from importlib.metadata import version; print(*(f'{name} {version(name)}' for name in ($needed)))"
arch='import torch; a, b = torch.cuda.get_device_capability(); print(f"{a}{b}" + "a" * (a == 9))'
TWOLAYER_CUDA_ARCHS=$("$python" -c "$arch") || { echo "there is no GPU that torch can use" >&2; exit 1; }
export TWOLAYER_CUDA_ARCHS
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader

step "build for sm_$TWOLAYER_CUDA_ARCHS" 150 \
    "$python" -m pip install --quiet --no-build-isolation --no-deps --editable . || exit 1
loaded='from twolayer import _native; print(_native.info()); module, reason = _native.cuda_state(); assert module, reason'
step "load" 60 "$python" -c "$loaded" || exit 1
step "tests" 150 "$python" -m pytest -q -p no:cacheprovider tests/cuda/test_cuda_*.py \
    -k "not emulated"
limit=$(at_most 240) # the last case that starts has a minute
step "benchmark" "$limit" "$python" -m twolayer.bench.gpu --out "$out" --seconds $((limit - 60))
short="not emulated and (test_table and (7-17-33-5 or 50-31-67-65) and tanh or test_strided)"
under memcheck "$short" --report-api-errors no
under racecheck "$short"

echo "== done after $SECONDS s; failed: ${failed[*]:-nothing}"
((${#failed[@]} == 0))
