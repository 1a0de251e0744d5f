#!/usr/bin/env bash
# What `make demo` does: real images, two DDP workers under Ray, a trained autoencoder, a table, a picture.
#   docs/demo.sh [key=value ...]      e.g. duration_samples=60000 for a shorter one
# Where the run exists it goes on; where it is finished it is measured and shown again.
set -euo pipefail
cd "$(dirname "$0")/.."

export VENV=${VENV:-.venv} DATA=${DATA:-data/fashion-mnist}
run=${RUN:-runs/demo}
shoal=$VENV/bin/shoal
times=()

# step NAME COMMAND...: show a command, run it, keep its time.
step() {
  local name=$1 began=$SECONDS
  shift
  printf '\n\033[1m%s\033[0m  $ %s\n' "$name" "$*"
  "$@"
  times+=("$(printf '  %-8s %5d s' "$name" $((SECONDS - began)))")
}

# How many CPUs Ray will count: those of the machine, or of the container's quota.
count_cpus() {
  local count quota period
  count=$(getconf _NPROCESSORS_ONLN)
  if read -r quota period 2>/dev/null </sys/fs/cgroup/cpu.max && [[ $quota != max ]] && ((quota < 2 * period)); then
    count=1
  fi
  echo "$count"
}

is_finished() {
  "$VENV/bin/python" - "$run" <<'PY'
import sys
from pathlib import Path

from shoal.run import Run

run = Run.open(Path(sys.argv[1]))
newest = run.newest_checkpoint()
sys.exit(newest is None or newest.samples < run.config.duration_samples)
PY
}

workers=(--workers 2)
if (($(count_cpus) < 2)); then
  workers+=(--cpus-per-worker 0.5)
fi

step install make --no-print-directory install
step import make --no-print-directory "$DATA/manifest.json"
if [[ ! -e $run/config.yaml ]]; then
  step train "$shoal" train autoencoder --data "$DATA" "${workers[@]}" --out "$run" "$@"
elif (($# == 0)) && is_finished; then
  printf '\n%s is finished already and shown again; to train anew: rm -r %s\n' "$run" "$run"
else
  step train "$shoal" train --resume --out "$run" "${workers[@]}" "$@"
fi
step eval "$shoal" eval "$run"
step picture "$shoal" reconstruct "$run" --out "$run/reconstructions.png"

printf '\n\033[1mtime\033[0m\n'
printf '%s\n' "${times[@]}"
printf '  %-8s %5d s\n' total "$SECONDS"
cat <<EOF

Originals above their reconstructions:  $run/reconstructions.png
Curves and pictures in TensorBoard:     $shoal board $run
The run's files:                        ls $run
EOF
