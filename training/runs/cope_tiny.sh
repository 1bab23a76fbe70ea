#!/usr/bin/env bash
# Trains cope-tiny from nothing: data, vision encoder, delta-encoder, the whole model, evaluation.
#
#   training/runs/cope_tiny.sh [OUT]           everything, into OUT (default runs/cope-tiny)
#   SCALE=0.1 training/runs/cope_tiny.sh OUT   a tenth of the clips and steps; STEPS_SCALE is for the steps alone
#
# Run it again after a kill and it goes on where it stopped. COPE names the command, WORKERS the processes that make
# data, LOADERS those that make batches (worth it where a GPU waits for them), LIMIT the held-out questions per type.
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
$COPE train make-data "$OUT/held-out" --clips "$(clips 3612)" --seed "$SEED" --held-out --workers "$WORKERS"

train vision "$OUT/vision" --preset tiny --steps "$(steps 450 10)" --batch 32 --lr 1.5e-3 --warmup "$(steps 30 2)"
train pretrain "$OUT/pretrain" --model "$OUT/vision/model" --data "$OUT/data" \
  --steps "$(steps 200 20)" --batch 32 --lr 1e-3 --warmup "$(steps 30 2)"
# Mostly one keyframe per GOP, where delta-tokens have most to say; two and four so that every setting works. The vision
# encoder stays frozen: stage 0 has taught it what it can see, and its backward pass would take a third of the time.
finetune() {
  train finetune "$1" --model "$2" --data "$OUT/data" --keyframes 1,1,1,1,1,1,2,4 --questions 6 --part-lr vision=0 --lr 1e-3 \
    --steps "$3" --batch 16 --warmup "$(steps 100 2)" --dtype float16
}
STEPS=$(steps 3000 12)
finetune "$OUT/finetune" "$OUT/pretrain/model" "$STEPS"

# What stage 1 is worth, at equal steps: NO_PRETRAIN=1 trains the comparison too, which doubles the time.
compare=()
if [ -n "${NO_PRETRAIN:-}" ]; then
  finetune "$OUT/no-pretrain" "$OUT/vision/model" "$STEPS"
  compare=(--no-pretrain "$OUT/no-pretrain/model")
fi

$COPE train eval "$OUT/finetune/model" "$OUT/held-out" --pretrained "$OUT/pretrain" "${compare[@]}" \
  ${LIMIT:+--limit "$LIMIT"} --json --workers "$WORKERS" >"$OUT/eval.json"
echo "wrote $OUT/finetune/model and $OUT/eval.json"
