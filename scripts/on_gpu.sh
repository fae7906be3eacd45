#!/usr/bin/env bash
# On a node with an NVIDIA GPU: engines, the tests that need the GPU, figures. What fails does not stop the rest.
#
# usage: scripts/on_gpu.sh [MEMBER ...]     default: the two of the default ensemble
# PYTHON: with the extras gpu and dev. PRECISION: fp16. OUT: folder for logs and figures, runs/gpu.
# MINUTES: for all of it, 9, of which the builds get half, the tests a quarter; what exceeds its share is ended.
# CALIBRATION: folder of crops, for PRECISION int8 or fp8.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3} precision=${PRECISION:-fp16} out=${OUT:-runs/gpu}
members=("$@")
[ $# -gt 0 ] || members=(mobilenet_v2_sharp mobilenet_v2_compressed)
seconds=$((60 * ${MINUTES:-9}))
calibration=(${CALIBRATION:+--calibration "$CALIBRATION"})
mkdir -p "$out"
failed=()

step() { # name, seconds, command: its output to the terminal and to OUT/name.log
    local name=$1 limit=$2 started=$SECONDS status
    shift 2
    echo "== $name (at most $limit s): $*"
    timeout --kill-after=10 "$limit" "$@" 2>&1 | tee "$out/$name.log"
    status=${PIPESTATUS[0]}
    echo "== $name: status $status after $((SECONDS - started)) s"
    [ "$status" -eq 0 ] || failed+=("$name")
}

left() { # share of the time, in percent, but no more than what is left
    local share=$((seconds * $1 / 100)) rest=$((seconds - SECONDS))
    [ "$rest" -gt 5 ] || rest=5
    echo $((share < rest ? share : rest))
}

step machine 20 nvidia-smi
if [[ ${members[*]} == *untrained/* ]]; then
    step untrained "$(left 10)" "$python" build_engines.py untrained
fi
# One by one, each installed as it is made; the first also makes the face detectors.
for member in "${members[@]}"; do
    step "build-${member##*/}" "$(left 50)" "$python" build_engines.py --target tensorrt --precision "$precision" \
        "${calibration[@]}" "$member"
done
step tests "$(left 25)" "$python" -m pytest tests/gpu -m needs_cuda --durations 10
step bench "$(left 100)" "$python" bench/gpu.py --json "$out/bench.json" --precision "$precision" --no-compile \
    --members "${members[@]}" --ensemble "${members[@]}" --batches 1 64 --seconds 6
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}; see $out" >&2
    exit 1
fi
