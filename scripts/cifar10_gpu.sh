#!/usr/bin/env bash
# CIFAR-10 on one GPU in parts: data, training, attack and records, each stopped before LIMIT seconds and gone on
# with by the same line. Say it again until it prints "complete".
#
#   DATA=DIR RUN=DIR OUT=DIR scripts/cifar10_gpu.sh [--FIELD VALUE ...]
#
# DATA: folder of the CIFAR-10 files (tiles or the official ones). RUN: the run folder, on a disk that outlasts a
# part. OUT: where the records go after every part, since a leased machine may not come back: configuration and log,
# the packed weights of every system, of unfinished ones too, and state.tar.gz with what is done of attacks and ladders
# (but for images of plain attacks, which are large); at the end published.tar.gz. LIMIT: seconds of one part (540).
# TRAIN: seconds that the training may take; three epochs are timed first, and there are as many as fit, in one cycle.
# Without it they are the recipe's. RECIPE: cifar10, or a file. PYTHON: the interpreter, squint being importable.
# Further arguments are fields of the recipe (--attack.ladder quick where a quarter of an hour is all there is: the
# active tests of standard take over an hour), or --only stochastic-information where the time is for one system
# (and for the network that attacks come from).
set -euo pipefail
: "${DATA:?folder of the CIFAR-10 files}" "${RUN:?the run folder}" "${OUT:?folder for the records}"
limit=${LIMIT:-540}
recipe=${RECIPE:-cifar10}
python=${PYTHON:-python3}
here=$(dirname "$0")
started=$SECONDS
stopped="stopped after $limit s; the same line goes on"
# A GPU affords the whole test set and the active tests; the recipe itself is sized for two cores.
if [ "$recipe" = cifar10 ]; then
  set -- --attack.images 10000 --attack.batch_size 250 --attack.ladder standard --attack.ladder_images 500 "$@"
fi
mkdir -p "$OUT"
if [ -e "$RUN.done" ]; then
  echo complete
  exit
fi
if [ -n "${TRAIN:-}" ] && [ ! -e "$RUN.epochs" ]; then
  timeout --signal INT --kill-after 20 "$limit" "$python" -m squint train "$recipe" --data-dir "$DATA" \
    --output "$RUN-timed" --overwrite --quiet "$@" --train.epochs 3 --train.cycles 1
  # The first epoch starts the device up, and its end writes a checkpoint; the third is what an epoch takes. A tenth is
  # left for surprises.
  "$python" - "$RUN-timed/log.jsonl" "$TRAIN" > "$RUN.epochs.new" <<'PYTHON'
import json
import sys

seconds = {}
for line in open(sys.argv[1], encoding="utf-8"):
    entry = json.loads(line)
    seconds.setdefault(entry["system"], {})[entry["epoch"]] = entry["seconds"]
print(max(1, int(0.9 * float(sys.argv[2]) / sum(s[3] - s[2] for s in seconds.values()))))
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
left=$((limit - SECONDS + started))
# Nothing can be begun in less, and a limit of 0 would be none.
if [ "$left" -lt 20 ]; then
  echo "$stopped"
  exit
fi
# Ctrl-C is the signal that keeps the state of the step at hand; a machine that hangs is killed a little later.
status=0
timeout --signal INT --kill-after 20 "$left" "$python" -m squint run "$recipe" \
  --data-dir "$DATA" --output "$RUN" --quiet "${resume[@]}" "$@" || status=$?
for kept in config.yaml results.json log.jsonl; do
  if [ -e "$RUN/$kept" ]; then
    cp "$RUN/$kept" "$OUT/"
  fi
done
if [ -e "$RUN/config.yaml" ]; then
  "$python" "$here/pack_weights.py" "$RUN" "$OUT" || echo "the weights could not be packed"
  (cd "$RUN" && tar -czf - --ignore-failed-read run.json systems ladder evidence examples 2> /dev/null || true) \
    > "$OUT/state.tar.gz"
fi
case $status in
  0)
    rm -rf "$RUN-published"
    "$python" -m squint publish "$RUN" --output "$RUN-published"
    tar -C "$RUN-published" -czf "$OUT/published.tar.gz" .
    touch "$RUN.done"
    echo complete
    ;;
  124 | 130) echo "$stopped" ;;
  *) exit "$status" ;;
esac
