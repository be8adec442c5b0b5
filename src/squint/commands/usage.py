"""What `squint --help` and `squint run --help` say."""

from __future__ import annotations

USAGE = """\
usage: squint COMMAND ...

Trains, attacks and compares ensembles of quantized networks.

  squint recipes                  list the packaged studies
  squint run RECIPE               the whole study: train every system, attack all, report
  squint train RECIPE             only the training
  squint attack FILE|RUN          attack a weights file (*.safetensors), or all of a run folder
  squint attack MODEL.onnx        attack an exported model, with --transfer-from RUN
  squint detect RUN               how well attacks are noticed, also attacks on the detector itself
  squint profile RUN              information between members against accuracy, threat by threat
  squint report RUN               write the report of a run folder again and print its table

  squint verify RUN|FILE.npz      score saved adversarial images again on unseen draws
  squint break MODEL FILE.npz     score your own adversarial images against a model
  squint compare A B              two systems, image by image: who keeps more, and is it shown
  squint extrapolate RUN FILE     a ladder's figure for all images, by a plain attack on all of them
  squint publish RUN              one system as a small folder that others can verify and break

  squint info RUN|FILE            parameters, bits, bytes and bit operations, layer by layer
  squint export RUN|FILE          one ONNX file, checked against its ensemble
  squint predict MODEL.onnx IMG.. classify image files with an exported model

Every field of a recipe can be set on the command line:

  squint run digits --train.epochs 5 --eps 16/255 --output runs/quick

`squint COMMAND --help` and `squint run RECIPE --help` list them with their defaults.

  --quiet      no progress bars, only the result
  --debug      show tracebacks
  --version    print the version

exit codes: 0 done, 1 a defect of squint's, 2 bad input (one line says which), 3 a saved figure does not
hold (verify), 130 stopped by Ctrl-C
"""

STUDY_USAGE = """\
usage: squint {command} RECIPE [--output DIR] [--resume | --overwrite] [--FIELD VALUE ...]

{what}

recipes: {recipes}, or the path of a .yaml file

  squint {command} digits                                   into the folder runs/digits
  squint {command} digits --output runs/a --train.epochs 5  another folder, another training
  squint {command} digits --output runs/a --train.epochs 5 --resume    go on where it was stopped
{seeds}  squint {command} digits --only full-precision              one system now, the others with --resume
  squint {command} study --dataset cifar10                  every rival and the system
  squint {command} hypothesis --dataset digits              collections, their members and subsets
  squint {command} cifar10 --data-dir DIR                   read the official files in DIR
  squint {command} cifar10 --devices 2                      two processes share it; more: docs/scaling.md
  squint {command} my.yaml                                  your own recipe; start from runs/*/config.yaml

`squint {command} RECIPE --help` lists every field with its default.
"""
WHAT = {
    "run": "Trains every system of a recipe, attacks all of them, and writes records, weights and a report.",
    "train": "Trains every system of a recipe and writes their weights; `squint run ... --resume` goes on\n"
    "(with --seed N for an ablation, which is otherwise run over three seeds).",
}


SEEDS = "  squint run digits --seeds 0 1 2                           once per seed, and verdicts\n"
