#!/usr/bin/env bash
# On the GPU box: unpack what build_payload.sh and prepare.py made, then measure as much as SECONDS allow.
# PAYLOAD holds engines.tar.zst.* and bin/, PREPARED what prepare.py wrote; WORK gets the engines and, in WORK/out, the
# results, which grow while it runs. With two GPUs the stacks are shared out between them.
# Usage: run_on_box.sh PAYLOAD PREPARED WORK SECONDS [STACK...]; with ALONE=1 the parts of a service are measured too, with
# TUNE=1 what tuning tries. WORK/out/{alone,comparison}.json of an earlier run are carried on.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
payload=$1 prepared=$2 work=$3
deadline=$(($(date +%s) + $4))
stacks=("${@:5}")
[ ${#stacks[@]} -gt 0 ] || stacks=(default all_sglang exceeds four notes prefill_graphs flashinfer)
export PYTHONUNBUFFERED=1
mkdir -p "$work/out"

if [ ! -d "$work/sites" ]; then
    mkdir "$work/sites.part"
    cat "$payload"/engines.tar.zst.* | LD_LIBRARY_PATH="$payload/bin" "$payload/bin/zstd" -dcq --long=30 |
        tar x -C "$work/sites.part"
    mv "$work/sites.part" "$work/sites"
    python3 -m compileall -q -j 0 "$work/sites" >/dev/null 2>&1 || true # some packages carry templates that do not compile
fi

gpus=$(nvidia-smi --query-gpu=index --format=csv,noheader | paste -sd,)
common=(--sites "$work/sites" --prepared "$prepared" --out "$work/out")
compare() { [ -e "$work/out/comparison.json" ] || python3 "$here/compare.py" "${common[@]}" --gpus "$gpus" || true; }
accept() { # SECONDS_TO_KEEP
    for gpu in ${gpus//,/ }; do
        {
            python3 "$here/accept.py" "${common[@]}" --gpu "$gpu" --deadline "$((deadline - $1))" "${stacks[@]}" || true
            [ -z "${ALONE:-}" ] ||
                python3 "$here/alone.py" "${common[@]}" --gpu "$gpu" --deadline "$((deadline - $1))" || true
        } &
    done
    wait
}

tune() { # when nothing else runs on the box, as it measures speed
    for gpu in ${gpus//,/ }; do
        python3 "$here/tune.py" "${common[@]}" --gpu "$gpu" --deadline "$deadline" &
    done
    wait
}

if [[ $gpus == *,* ]]; then
    compare
    accept 0
else
    accept 250
    compare
fi
[ -z "${TUNE:-}" ] || tune
echo "all done"
