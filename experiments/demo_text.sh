#!/usr/bin/env bash
# Images with reports: pre-training on pairs, retrieval, and graders from 10 % of the grades with and without it. `make demo-text` runs it;
# BIN is the environment's bin folder, PRECISION auto (the faster here), fp32 or bf16.
set -euo pipefail
BIN=${BIN:-.venv/bin}
DEMO=${DEMO_TEXT:-runs/demo_text}
PRECISION=${PRECISION:-auto}
run() { printf '\n\033[1m%s\033[0m\n  $ %s\n' "$1" "${*:2}"; "$BIN/${@:2:1}" "${@:3}"; }

if [ -e "$DEMO" ]; then
  echo "demo-text: $DEMO exists already; remove it to start again" >&2
  exit 2
fi
data=(--data.manifest "$DEMO/data/manifest.csv" --data.split "$DEMO/split.csv" --data.image_size 64 --runs "$DEMO")
data+=(--fit.precision "$PRECISION" --fit.epochs 0)
grader=(--config configs/kl_xray.yaml --config configs/rows/supervised.yaml "${data[@]}" --labeled-fraction 0.1)
grader+=(--model.normalise image --data.labeled_per_batch 20 --fit.steps 150 --fit.validate_every 50 --data.allow_missing_grades true)
run "1. Radiographs of 240 patients with reports, age, sex, BMI and pain" \
  dcmt phantom "$DEMO/data" --kind xray --reports --patients 240 --size 64
run "2. A split by patient" \
  dcmt split "$DEMO/data/manifest.csv" --out "$DEMO/split.csv"
run "3. Image and text encoder on pairs, without grades" \
  python train.py --config configs/lumbarclip.yaml "${data[@]}" --data.labeled_per_batch 48 --fit.steps 200 --name pairs
run "4. Retrieval on the test split, beside chance and bound" \
  dcmt retrieve "$DEMO/pairs" --split test --covariate age --covariate sex --covariate bmi --covariate pain
run "5. A grader from 10 % of the grades" \
  python train.py "${grader[@]}" --name scratch
run "6. The same, started from the image encoder of step 3" \
  python train.py "${grader[@]}" --name started --model.start "$DEMO/pairs"
run "7. Image, report and table, with the privileged teacher, from the same grades" \
  python train.py --config configs/beyond_clip.yaml "${data[@]}" --labeled-fraction 0.1 --data.labeled_per_batch 32 --fit.steps 200 --name joint
run "8. From scratch against started" \
  dcmt compare "$DEMO/scratch" "$DEMO/started" --split test --no-flip
run "9. From scratch against the joint run, which grades from the image alone" \
  dcmt compare "$DEMO/scratch" "$DEMO/joint" --split test --no-flip
echo
echo "queries and their first five images: $DEMO/pairs/figures/retrieval_test.png"
echo "Research use only: not a medical device, not for diagnosis."
