#!/usr/bin/env bash
# On a node with an NVIDIA GPU: engines, the tests that need the GPU, figures. What fails does not stop the rest.
#
# usage: scripts/on_gpu.sh [MEMBER ...]     default: those of the default ensemble
# PYTHON: with the extras gpu and dev. PRECISION: fp16. OUT: folder for logs and figures, runs/gpu.
# MINUTES: for all of it, 9. Every step has a share of it and what is left of those before; at its end it is ended.
# MAX_DIFFERENCE: of a probability, see build_engines.py; int8 and fp8 need more than its default.
# CALIBRATION: folder of crops, for PRECISION int8 or fp8.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3} precision=${PRECISION:-fp16} out=${OUT:-runs/gpu}
members=("$@")
[ $# -gt 0 ] || read -ra members < <("$python" -c "from streamer.config import ClassifyConfig as C; print(*C().members)")
seconds=$((60 * ${MINUTES:-9}))
build=("$python" build_engines.py --target tensorrt --precision "$precision"
    ${CALIBRATION:+--calibration "$CALIBRATION"} ${MAX_DIFFERENCE:+--max-difference "$MAX_DIFFERENCE"})
bench=("$python" bench/gpu.py --precision "$precision" --members "${members[@]}" --ensemble "${members[@]}")
export PYTHONUNBUFFERED=1
mkdir -p "$out"
failed=()

step() { # name, percent of MINUTES at which it ends, command: its output to the terminal and to OUT/name.log
    local name=$1 limit=$((seconds * $2 / 100 - SECONDS)) started=$SECONDS status
    shift 2
    if [ "$limit" -lt 5 ]; then
        echo "== $name: no time left"
        failed+=("$name")
        return
    fi
    echo "== $name (at most $limit s): $*"
    timeout --signal=INT --kill-after=10 "$limit" "$@" 2>&1 | tee "$out/$name.log"
    status=${PIPESTATUS[0]}
    echo "== $name: status $status after $((SECONDS - started)) s"
    [ "$status" -eq 0 ] || failed+=("$name")
}

step machine 5 nvidia-smi
if [[ ${members[*]} == *untrained/* ]]; then
    step untrained 10 "$python" build_engines.py untrained
fi
# One by one, each installed as it is made; the first also makes the face detectors.
for member in "${members[@]}"; do
    step "build-${member##*/}" 45 "${build[@]}" "$member"
done
step tests 65 "$python" -m pytest tests/gpu -m needs_cuda --durations 10
step bench 80 "${bench[@]}" --json "$out/bench.json" --ways eager graphed tensorrt --batches 1 64 --seconds 6
step bench-nvdec 88 "${bench[@]}" --json "$out/bench-nvdec.json" --parts pipeline --nvdec --seconds 6
# What takes long to compile, at one batch: a member that runs out of time costs none before it.
step bench-compiled 94 "${bench[@]}" --json "$out/bench-compiled.json" --parts networks --batches 64 \
    --ways eager graphed tensorrt compiled
step bench-torch-tensorrt 100 "${bench[@]}" --json "$out/bench-torch-tensorrt.json" --parts networks --batches 64 \
    --ways tensorrt torch_tensorrt
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}; see $out" >&2
    exit 1
fi
