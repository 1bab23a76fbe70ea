#!/usr/bin/env bash
# Trains cope-tiny from nothing: data, vision encoder, delta-encoder, the whole model, evaluation.
#
#   training/runs/cope_tiny.sh [OUT]           everything, into OUT (default runs/cope-tiny)
#   SCALE=0.1 training/runs/cope_tiny.sh OUT   a tenth of the clips and steps; STEPS_SCALE is for the steps alone
#
# Run it again after a kill and it goes on where it stopped. COPE names the command, WORKERS the processes that make
# data, LOADERS those that make batches (worth it where a GPU waits for them), LIMIT the held-out questions per type,
# ROWS_LIMIT those of ablations and comparisons.
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT=${1:-runs/cope-tiny}
SCALE=${SCALE:-1}
STEPS_SCALE=${STEPS_SCALE:-$SCALE}
COPE=${COPE:-$([ -x .venv/bin/cope ] && echo .venv/bin/cope || echo cope)}
WORKERS=${WORKERS:-$(nproc)}
LOADERS=${LOADERS:-0}
SEED=${SEED:-0}

# scaled N LEAST SCALE: N times SCALE, but at least LEAST.
scaled() { awk -v n="$1" -v least="$2" -v s="$3" 'BEGIN { x = int(n * s + 0.5); print (x > least ? x : least) }'; }
clips() { scaled "$1" 24 "$SCALE"; }
steps() { scaled "$1" "$2" "$STEPS_SCALE"; }

# A stage is done when its result is there; its own state tells an unfinished one where to go on.
train() {
  local stage=$1 folder=$2
  shift 2
  [ -f "$folder/model/model.safetensors" ] || $COPE train "$stage" --out "$folder" --seed "$SEED" --workers "$WORKERS" --loaders "$LOADERS" "$@"
}

mkdir -p "$OUT"
$COPE train make-data "$OUT/data" --clips "$(clips 6000)" --seed "$SEED" --workers "$WORKERS"
# More of what is hard to learn and rare: of 6,000 clips 316 have a thing that appears or disappears.
$COPE train make-data "$OUT/more" --clips "$(clips 4800)" --seed $((SEED + 1)) --workers "$WORKERS" \
  --kinds appear,appear,appear,who,who,named,named,order,order,order,move,move
# The clips that the figures are of; while the recipe was tried, others were looked at (seed 0).
$COPE train make-data "$OUT/held-out" --clips "$(clips 3612)" --seed $((SEED + 100)) --held-out --workers "$WORKERS"

train vision "$OUT/vision" --preset tiny --steps "$(steps 450 10)" --batch 32 --lr 1.5e-3 --warmup "$(steps 30 2)"
train pretrain "$OUT/pretrain" --model "$OUT/vision/model" --data "$OUT/data" \
  --steps "$(steps 600 20)" --batch 32 --lr 1e-3 --warmup "$(steps 30 2)"
# Stage 2 in parts, each from the model of the one before: what is learned in a hundred steps where little else is asked
# is not learned in thousands among all questions. The vision encoder stays frozen: stage 0 has taught it what it can
# see, and its backward pass would take a third of the time. FOLDER, MODEL, STEPS, BATCH and a number for the seed come
# first, then what differs.
tune() {
  train finetune "$1" --model "$2" --data "$OUT/data" --steps "$(steps "$3" 3)" --batch "$4" --seed $((SEED + $5)) \
    --part-lr vision=0 --lr 1e-3 --warmup "$(steps 30 2)" "${@:6}"
}
# Mostly one keyframe per GOP, where delta-tokens have most to say; two and four so that every setting works.
ALL=(--keyframes 1,1,1,1,1,1,2,4 --dtype float16)
LANGUAGE=(--part-lr delta=0)  # nothing but the language model and the projector learns
ONE=(--keyframes 1 --without 0 --zeroed 0 --focus)
PICTURES=(--keyframes 1 --without 1 --zeroed 0 --focus --questions 8)
MORE=(--data "$OUT/data" "$OUT/more")
finetune() {
  # 1. Everything. It learns what is true of a single thing, and to name things in sentences.
  tune "$1" "$2" 3000 16 0 "${ALL[@]}" --questions 6
  # 2. Pictures alone: on which side a named thing is.
  tune "$1-stills" "$1/model" 200 32 2 "${PICTURES[@]}" --groups side,colour,describe
  # 3. Single things have taught the delta-encoder to forget places: it learns again to tell where motion is, then the
  #    language model to use it; then everything again, what is still wrong first.
  train pretrain "$1-decode" --objective decode --model "$1-stills/model" --data "$OUT/data" \
    --seed $((SEED + 4)) --steps "$(steps 400 6)" --batch 96 --lr 2e-3 --warmup "$(steps 30 2)"
  tune "$1-bind" "$1-decode/model" 250 16 3 "${ONE[@]}" --questions 8 --decode 0.3 --groups which_moves,who_moves,named_direction
  tune "$1-again" "$1-bind/model" 520 16 1 "${ALL[@]}" --questions 8 --focus --decode 0.3 \
    --groups side,colour,count,describe,motion,binding
  # 4. A deeper language model, alone: one of several things, from colour to corner, from motion to corner, and what
  #    follows from both.
  tune "$1-corners" "$1-again/model" 300 24 2 "${LANGUAGE[@]}" "${PICTURES[@]}" --layers 8 \
    --groups corner,colour+,side+
  tune "$1-places" "$1-corners/model" 250 20 3 "${LANGUAGE[@]}" "${ONE[@]}" --questions 8 \
    --groups which_moves,named_direction,moving_corner,corner
  tune "$1-ways" "$1-places/model" 140 24 6 "${LANGUAGE[@]}" "${ONE[@]}" --questions 8 \
    --groups named_direction,moving_corner,who_moves
  tune "$1-colours" "$1-ways/model" 160 24 8 "${LANGUAGE[@]}" "${ONE[@]}" --questions 7 \
    --groups who_moves,order,appear,moving_corner,colour+,corner,contents
  # 5. Everything once more.
  tune "$1-all" "$1-colours/model" 580 24 9 "${LANGUAGE[@]}" "${ALL[@]}" --questions 8 --focus --without 0.15 \
    --groups side,colour,count,corner,contents,motion,which_moves,who_moves,named_direction,order,moving_corner
  # 6. What is in a corner, on pictures, then what was there before something appeared or disappeared. From here on with
  #    more clips of what is hard.
  tune "$1-inside" "$1-all/model" 300 24 22 "${LANGUAGE[@]}" "${MORE[@]}" "${PICTURES[@]}" \
    --groups contents,corner,colour,side,count
  tune "$1-contents" "$1-inside/model" 150 24 23 "${LANGUAGE[@]}" "${MORE[@]}" "${PICTURES[@]}" \
    --groups contents,corner,colour+,count
  tune "$1-before" "$1-contents/model" 220 20 24 "${LANGUAGE[@]}" "${MORE[@]}" "${ONE[@]}" --questions 8 \
    --groups appear,before,contents,moving_corner,speed
  # 7. One or two things at a time: what among others does not rise for a thousand steps is learned in two hundred.
  narrow() { tune "$1" "$2/model" "$3" 24 "$4" "${LANGUAGE[@]}" "${MORE[@]}" "${ONE[@]}" --questions 8 --groups "$5"; }
  narrow "$1-change" "$1-before" 150 26 appear,before
  narrow "$1-speed" "$1-change" 160 27 appear,before,speed
  narrow "$1-who" "$1-speed" 200 28 who_moves,order,moving_corner,appear
  narrow "$1-order" "$1-who" 220 29 who_moves,order
  narrow "$1-named" "$1-order" 180 30 named_direction,who_moves
  # 8. Everything: what the narrow parts have not asked for comes back, and what they have brought stays. Then the same
  #    once more for what still lags.
  everything() {
    tune "$1" "$2/model" "$3" 24 "$4" "${LANGUAGE[@]}" "${MORE[@]}" "${ALL[@]}" --questions 12 --focus --zeroed 0.08 \
      --without 0.1 --lr "$5" --groups \
      side,colour,count,corner,contents,motion,which_moves,who_moves,named_direction,order,moving_corner,before
  }
  everything "$1-whole" "$1-named" 620 31 1e-3
  everything "$1-settled" "$1-whole" 180 33 5e-4
  everything "$1-longer" "$1-settled" 500 34 8e-4
  narrow "$1-changes" "$1-longer" 150 35 appear,before,speed
  everything "$1-last" "$1-changes" 300 36 6e-4
}
finetune "$OUT/finetune" "$OUT/pretrain/model"

# figures FILE ARGUMENTS: what `cope train eval` says, or no file.
figures() {
  $COPE train eval "${@:2}" ${LIMIT:+--limit "$LIMIT"} ${ROWS_LIMIT:+--rows-limit "$ROWS_LIMIT"} --json \
    --workers "$WORKERS" >"$1.part"
  mv "$1.part" "$1"
}

# What stage 1 is worth, at equal steps: NO_PRETRAIN=1 trains the same beginning of stage 2 with and without it. Part 3
# trains the delta-encoder against the primitives in both cases, so the finished model would not tell.
if [ -n "${NO_PRETRAIN:-}" ]; then
  for start in pretrain vision; do
    tune "$OUT/short-from-$start" "$OUT/$start/model" 120 24 0 --keyframes 1 --groups motion --dtype float16
  done
  figures "$OUT/no_pretrain.json" "$OUT/short-from-pretrain/model" "$OUT/held-out" --rows none \
    --no-pretrain "$OUT/short-from-vision/model"
fi

figures "$OUT/eval.json" "$OUT/finetune-last/model" "$OUT/held-out" --pretrained "$OUT/pretrain"
echo "wrote $OUT/finetune-last/model and $OUT/eval.json"
