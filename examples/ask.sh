#!/bin/sh
# Uploads a clip with curl, asks about it by its id, and deletes it: `sh examples/ask.sh clip.mp4`.
set -eu

clip=${1:?usage: ask.sh CLIP}
server=${OPENAI_BASE_URL:-http://localhost:8000/v1}

call() {
  curl --silent --show-error --fail-with-body -H "Authorization: Bearer ${OPENAI_API_KEY:-none}" "$@"
}

created=$(call "$server/files" -F purpose=vision -F "file=@$clip") || { echo "$created" >&2; exit 1; }
file=$(echo "$created" | sed 's/.*"id":"\(file-[^"]*\)".*/\1/')
trap 'call -X DELETE "$server/files/$file" > /dev/null' EXIT

call "$server/chat/completions" -H 'Content-Type: application/json' -d @- <<JSON
{
  "messages": [{"role": "user", "content": [
    {"type": "file", "file": {"file_id": "$file", "fps": 1, "keyframes_per_gop": 1}},
    {"type": "text", "text": "In which direction is the object moving?"}
  ]}],
  "max_completion_tokens": 16,
  "temperature": 0
}
JSON
echo
