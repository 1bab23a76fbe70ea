#!/usr/bin/env bash
# Measures the latency claim on this machine and keeps the reports: `cope bench prefill` with models of full size, then
# the real server with random weights under the `codec-vs-dense` load. Needs no checkpoint and no network.
#
#   scripts/gpu_claim.sh [OUT]                           on a GPU: presets 7b and 7b-light, server at 7b
#   PRESET=tiny DEVICE=cpu scripts/gpu_claim.sh [OUT]    a rehearsal on any machine
#
# PRESET         presets to measure, separated by spaces; the first is served (7b 7b-light)
# DEVICE         cuda or cpu: of the bench; the server takes what its vLLM is built for (cuda)
# STEPS          which of them, in this order (bench serve loadtest)
# PYTHON         a Python with torch and vLLM (.venv/bin/python if there is one, else python3). Where cope-serve is not
#                installed in it, this checkout is used as it is
# BENCH_ARGS     more options of `cope bench prefill`, such as '--repeats 20 --compile'
# SERVE_ARGS     more options of `cope serve`, such as '--enforce-eager --mm-encoder-attn-backend TORCH_SDPA'
# LOADTEST_ARGS  more options of `cope loadtest run`
# CONCURRENCY    requests at a time (1, 8, 16)
# START_S        seconds that the server may take to start (900)
#
# Ends with 1 if a step failed. What this machine lacks is skipped, and named at the end.
set -uo pipefail
cd "$(dirname "$0")/.."
read -ra presets <<<"${PRESET:-7b 7b-light}"
device=${DEVICE:-cuda}
steps=" ${STEPS:-bench serve loadtest} "
concurrency=${CONCURRENCY:-1, 8, 16}
out=${1:-gpu-claim-$(date -u +%Y%m%d-%H%M%S)}
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
fi
mkdir -p "$out" || exit 2
work=$(mktemp -d)
server=
failed=()
skipped=()

stop_server() {
  if [ -z "$server" ]; then return; fi
  # Its whole process group: the engine and the codec workers are in it.
  kill -TERM "$server" 2>/dev/null
  for _ in $(seq 60); do
    kill -0 -- "-$server" 2>/dev/null || break
    sleep 0.5
  done
  kill -KILL -- "-$server" 2>/dev/null
  wait "$server" 2>/dev/null
  server=
}
trap 'stop_server; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

say() { printf '\n== %s\n' "$*"; }
cope() { "$PYTHON" -m cope_server.cli "$@"; }
step() { # NAME COMMAND...: runs it, and remembers if it fails
  local name=$1
  shift
  say "$name"
  "$@" || {
    failed+=("$name")
    return 1
  }
}
missing() { # MODULE...: those that Python does not find
  "$PYTHON" - "$@" <<'PY'
import sys
from importlib.util import find_spec

print(*(name for name in sys.argv[1:] if find_spec(name) is None))
PY
}
skip() { # NAME REASON
  skipped+=("$1: $2")
  say "$1 skipped: $2"
}

if [ -n "$(missing cope_server)" ]; then
  PYTHONPATH=$("$PYTHON" scripts/plain_checkout.py "$work/metadata")${PYTHONPATH:+:$PYTHONPATH} || exit 2
  export PYTHONPATH
fi
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 COLUMNS=${COLUMNS:-180}
{
  date -u +%FT%TZ
  git log -1 --format='commit %H' 2>/dev/null
  nvidia-smi --query-gpu=name,memory.total,driver_version,clocks.max.sm --format=csv 2>/dev/null
  grep -m1 'model name' /proc/cpuinfo
  "$PYTHON" --version
} >"$out/machine.txt"
cat "$out/machine.txt"

if [[ $steps == *" bench "* ]]; then
  lacking=$(missing torch transformers safetensors rich)
  if [ -n "$lacking" ]; then
    skip bench "this Python lacks $lacking"
  else
    for preset in "${presets[@]}"; do
      # shellcheck disable=SC2086
      step "bench $preset" cope bench prefill --preset "$preset" --device "$device" --out "$out/prefill-$preset.json" \
        ${BENCH_ARGS:-} | tee "$out/prefill-$preset.txt"
      # A pipe's commands run in shells of their own, so a failure has to be learnt from what is not there.
      [ -s "$out/prefill-$preset.json" ] || failed+=("bench $preset")
    done
  fi
fi

start_server() {
  local port
  port=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  url=http://127.0.0.1:$port
  # 13,440 tokens of 64 dense frames, a question and its answer.
  # shellcheck disable=SC2086
  setsid "$PYTHON" -m cope_server.cli serve --preset "${presets[0]}" --host 127.0.0.1 --port "$port" \
    --max-model-len 16384 ${SERVE_ARGS:-} >"$out/server.log" 2>&1 &
  server=$!
  local began=$SECONDS
  until "$PYTHON" -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1] + "/health", timeout=2)' "$url" 2>/dev/null
  do
    if ! kill -0 "$server" 2>/dev/null || ((SECONDS - began > ${START_S:-900})); then
      tail -n 30 "$out/server.log"
      stop_server
      return 1
    fi
    sleep 1
  done
  echo "answers at $url after $((SECONDS - began)) s"
}

ask() { # NAME OPTION...: one question about a short clip
  local name=$1
  shift
  cope ask "$work/clip.mp4" "What moves?" --url "$url" --max-tokens 64 "$@" | tee "$out/ask-$name.txt"
}

if [[ $steps == *" serve "* || $steps == *" loadtest "* ]]; then
  lacking=$(missing vllm av numba pebble httpx)
  if [ -n "$lacking" ]; then
    skip "serve and loadtest" "this Python lacks $lacking"
  elif step "serve ${presets[0]}" start_server; then
    if cope sample "$work/clip.mp4" --seed 7; then
      step "ask, dense" ask dense --frames 64
      step "ask, one keyframe per GOP" ask codec --keyframes-per-gop 1
    else
      failed+=("sample clip")
    fi
    if [[ $steps != *" loadtest "* ]]; then
      :
    elif cope loadtest run --help >/dev/null 2>&1; then
      # shellcheck disable=SC2086
      step "loadtest codec-vs-dense at concurrency $concurrency" cope loadtest run codec-vs-dense --base-url "$url" \
        --out "$out/codec-vs-dense" --set "matrix.concurrency=[$concurrency]" ${LOADTEST_ARGS:-}
    else
      skip loadtest "this version has no 'cope loadtest run'"
    fi
    stop_server
  fi
fi

{
  for one in "${skipped[@]}"; do echo "skipped $one"; done
  for one in "${failed[@]}"; do echo "failed $one"; done
  [ ${#failed[@]} -gt 0 ] || echo "everything that was run succeeded"
} | tee "$out/summary.txt"
echo "reports: $out"
[ ${#failed[@]} -eq 0 ]
