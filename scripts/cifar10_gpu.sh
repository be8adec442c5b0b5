#!/usr/bin/env bash
# CIFAR-10 on one GPU in parts: data, training, attack and records, each stopped before LIMIT seconds and gone on
# with by the same line. Say it again until it prints "complete".
#
#   DATA=DIR RUN=DIR OUT=DIR scripts/cifar10_gpu.sh [--FIELD VALUE ...]
#
# DATA: folder of the CIFAR-10 files (tiles or the official ones). RUN: the run folder, on a disk that outlasts a
# part. OUT: where the records go. LIMIT: seconds of one part (540). RECIPE: cifar10. PYTHON: the interpreter,
# squint being importable. Further arguments are fields of the recipe.
set -euo pipefail
: "${DATA:?folder of the CIFAR-10 files}" "${RUN:?the run folder}" "${OUT:?folder for the records}"
limit=${LIMIT:-540}
recipe=${RECIPE:-cifar10}
python=${PYTHON:-python3}
resume=()
if [ -e "$RUN/config.yaml" ]; then
  resume=(--resume)
fi
# Ctrl-C is the signal that keeps the state of the step at hand; a machine that hangs is killed a little later.
status=0
timeout --signal INT --kill-after 20 "$limit" "$python" -m squint run "$recipe" \
  --data-dir "$DATA" --output "$RUN" --quiet "${resume[@]}" "$@" || status=$?
mkdir -p "$OUT"
for kept in config.yaml results.json log.jsonl; do
  if [ -e "$RUN/$kept" ]; then
    cp "$RUN/$kept" "$OUT/"
  fi
done
case $status in
  0) "$python" -m squint publish "$RUN" --output "$OUT/published" && echo complete ;;
  124 | 130) echo "stopped after $limit s; the same line goes on" ;;
  *) exit "$status" ;;
esac
