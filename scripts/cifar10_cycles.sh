#!/usr/bin/env bash
# The three cycles that the shipped cifar10 comes from, each from the packed weights of the one before, and the
# attacks that the recipe asks for on the last. Stopped, the same line goes on.
#
#   DATA=DIR RUNS=DIR scripts/cifar10_cycles.sh [--FIELD VALUE ...]
#
# DATA: folder of the CIFAR-10 files (tiles or the official ones). RUNS: where first, second and third go, the run folders;
# third is what `squint publish` takes. Seven hours of two cores for training, two for attacks. EPOCHS: of each cycle
# ("18 12 10"). RECIPE: cifar10, or another with a system stochastic-information. PYTHON: the interpreter, squint being
# importable. Further arguments are fields of the recipe, for every cycle.
set -euo pipefail
: "${DATA:?folder of the CIFAR-10 files}" "${RUNS:?where the run folders go}"
read -r -a epochs <<< "${EPOCHS:-18 12 10}"
if [ "${#epochs[@]}" -ne 3 ]; then
  echo "EPOCHS is '$EPOCHS'; allowed: three numbers, one for each cycle" >&2
  exit 2
fi
recipe=${RECIPE:-cifar10}
python=${PYTHON:-python3}
here=$(dirname "$0")
system=stochastic-information
fields=("$@")

# cycle COMMAND NAME EPOCHS [--FIELD VALUE ...]: train it, or go on with it, and pack its weights.
cycle() {
  local command=$1 run=$RUNS/$2 count=$3 resume=()
  shift 3
  if [ -e "$run/packed/$system.safetensors" ]; then
    return
  fi
  if [ -e "$run/config.yaml" ]; then
    resume=(--resume)
  fi
  "$python" -m squint "$command" "$recipe" --only "$system" --data-dir "$DATA" --output "$run" "${resume[@]}" \
    --train.epochs "$count" "$@" "${fields[@]}"
  mkdir -p "$run/packed"
  "$python" "$here/pack_weights.py" "$run" "$run/packed"
}

# The terms of the loss rise once, in the first cycle; every cycle has its own order, augmentation and noise.
going_on() {
  printf '%s\n' "--systems.$system.start" "$RUNS/$1/packed/$system.safetensors" \
    "--systems.$system.objective.information-warmup" 0 "--systems.$system.objective.agreement-warmup" 0 \
    --train.evaluate-every 2
}

cycle train first "${epochs[0]}"
mapfile -t begin < <(going_on first)
cycle train second "${epochs[1]}" "${begin[@]}" --train.seed 1
mapfile -t begin < <(going_on second)
cycle run third "${epochs[2]}" "${begin[@]}" --train.seed 2 --train.learning-rate 0.0125
echo complete
