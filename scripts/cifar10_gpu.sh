#!/usr/bin/env bash
# CIFAR-10 on one GPU in parts: data, training, attack and records, each stopped before LIMIT seconds and gone on
# with by the same line. Say it again until it prints "complete".
#
#   DATA=DIR RUN=DIR OUT=DIR scripts/cifar10_gpu.sh [--FIELD VALUE ...]
#
# DATA: folder of the CIFAR-10 files (tiles or the official ones). RUN: the run folder, on a disk that outlasts a
# part. OUT: where the records go, and the packed weights of every system, of unfinished ones too: a leased machine
# may not come back. LIMIT: seconds of one part (540). TRAIN: seconds that the training may take; two epochs are
# timed first, and there are as many as fit, in one cycle. Without it they are the recipe's. RECIPE: cifar10, or a file.
# PYTHON: the interpreter, squint being importable. Further arguments are fields of the recipe, or
# --only stochastic-information where the time is for one system (and for the network that attacks come from).
set -euo pipefail
: "${DATA:?folder of the CIFAR-10 files}" "${RUN:?the run folder}" "${OUT:?folder for the records}"
limit=${LIMIT:-540}
recipe=${RECIPE:-cifar10}
python=${PYTHON:-python3}
here=$(dirname "$0")
started=$SECONDS
# A GPU affords the whole test set and the active tests; the recipe itself is sized for two cores.
if [ "$recipe" = cifar10 ]; then
  set -- --attack.images 10000 --attack.resubmissions 40 --attack.batch_size 250 \
    --attack.ladder standard --attack.ladder_images 500 "$@"
fi
mkdir -p "$OUT"
if [ -n "${TRAIN:-}" ] && [ ! -e "$RUN.epochs" ]; then
  timeout --signal INT --kill-after 20 "$limit" "$python" -m squint train "$recipe" --data-dir "$DATA" \
    --output "$RUN-timed" --overwrite --quiet "$@" --train.epochs 2 --train.cycles 1
  # The first epoch starts the device up; the second is what an epoch takes. A tenth is left for surprises.
  "$python" - "$RUN-timed/log.jsonl" "$TRAIN" > "$RUN.epochs.new" <<'PYTHON'
import json
import sys

seconds = {}
for line in open(sys.argv[1], encoding="utf-8"):
    entry = json.loads(line)
    seconds.setdefault(entry["system"], {})[entry["epoch"]] = entry["seconds"]
print(max(1, int(0.9 * float(sys.argv[2]) / sum(s[2] - s[1] for s in seconds.values()))))
PYTHON
  mv "$RUN.epochs.new" "$RUN.epochs"
  rm -rf "$RUN-timed"
fi
if [ -e "$RUN.epochs" ]; then
  set -- "$@" --train.epochs "$(cat "$RUN.epochs")" --train.cycles 1
  echo "epochs: $(cat "$RUN.epochs")"
fi
resume=()
if [ -e "$RUN/config.yaml" ]; then
  resume=(--resume)
fi
# Ctrl-C is the signal that keeps the state of the step at hand; a machine that hangs is killed a little later.
status=0
timeout --signal INT --kill-after 20 "$((limit - SECONDS + started))" "$python" -m squint run "$recipe" \
  --data-dir "$DATA" --output "$RUN" --quiet "${resume[@]}" "$@" || status=$?
for kept in config.yaml results.json log.jsonl; do
  if [ -e "$RUN/$kept" ]; then
    cp "$RUN/$kept" "$OUT/"
  fi
done
if [ -e "$RUN/config.yaml" ]; then
  "$python" "$here/pack_weights.py" "$RUN" "$OUT" || echo "the weights could not be packed"
fi
case $status in
  0) "$python" -m squint publish "$RUN" --output "$OUT/published" && echo complete ;;
  124 | 130) echo "stopped after $limit s; the same line goes on" ;;
  *) exit "$status" ;;
esac
