#!/usr/bin/env bash
# The whole method on the phantom, from drawing it to attention overlays. `make demo` runs it; BIN is the environment's bin folder,
# PRECISION auto (the faster here), fp32 or bf16.
set -euo pipefail
BIN=${BIN:-.venv/bin}
DEMO=${DEMO:-runs/demo}
PRECISION=${PRECISION:-auto}
step() { printf '\n\033[1m%s\033[0m\n  $ %s\n' "$1" "$2"; }
run() { step "$1" "${*:2}"; "$BIN/${@:2:1}" "${@:3}"; }

if [ -e "$DEMO" ]; then
  echo "demo: $DEMO exists already; remove it with make clean-demo to start again" >&2
  exit 2
fi
started=$(date +%s)
data=$DEMO/data
run "1. A phantom: 2,320 sagittal MR slices of 290 patients, 40 training slices with a drawn cartilage mask" \
  dcmt phantom "$data" --seed 0
run "2. A split by patient, with ranks from which every labeled fraction follows" \
  dcmt split "$data/manifest.csv" --grade-set cartilage --out "$DEMO/split.csv"
run "3. The cartilage segmenter, trained on the 40 drawn masks" \
  dcmt segment train --config configs/phantom_unet.yaml --data.manifest "$data/manifest.csv" --data.split "$DEMO/split.csv" \
  --runs "$DEMO" --name unet --fit.precision "$PRECISION"
run "4. Its masks for the other training slices, and a manifest that names them" \
  dcmt segment predict "$DEMO/unet" --out "$data/masks_unet"
run "5. DC-MT: student and teacher on 10 % of the labels and all training images" \
  python train.py --config configs/phantom.yaml --labeled-fraction 0.1 --data.manifest "$data/manifest_masks.csv" \
  --data.split "$DEMO/split.csv" --runs "$DEMO" --name dcmt \
  --fit.precision "$PRECISION"
run "6. Student and teacher on the test split" \
  dcmt evaluate "$DEMO/dcmt" --split test
run "7. Attention overlays" \
  dcmt attention "$DEMO/dcmt" --split test --cases 24
printf '\ndone in %d minutes. More to look at:\n' $((($(date +%s) - started + 30) / 60))
cat <<END
  overlays:     $DEMO/dcmt/attention_test/sheet.png (and one PNG per case next to it)
  figures:      $DEMO/dcmt/figures/
  TensorBoard:  $BIN/tensorboard --logdir $DEMO --samples_per_plugin images=1000
  one image:    $BIN/dcmt predict $DEMO/dcmt $data/images/P0000_00.png --out $DEMO/one
  your images:  see README.md
Research use only: not a medical device, not for diagnosis.
END
