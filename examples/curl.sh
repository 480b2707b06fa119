#!/bin/sh
# Chat completions with nothing but curl: whole, streamed, and with an image.
set -eu
BASE_URL=${BASE_URL:-http://127.0.0.1:8000}
cd "$(dirname "$0")/.."

echo '# whole'
curl -sS --fail-with-body "$BASE_URL/v1/chat/completions" -H 'Content-Type: application/json' -d '{
  "model": "demo",
  "messages": [{"role": "user", "content": "Count from 3 to 9."}],
  "temperature": 0
}'

echo
echo '# streamed'
curl -sS --fail-with-body -N "$BASE_URL/v1/chat/completions" -H 'Content-Type: application/json' -d '{
  "model": "demo",
  "messages": [{"role": "user", "content": "What is 7 + 8?"}],
  "temperature": 0,
  "stream": true
}'

echo '# an image'
image=$(base64 < demo/images/red_circle.png | tr -d '\n')
curl -sS --fail-with-body "$BASE_URL/v1/chat/completions" -H 'Content-Type: application/json' -d '{
  "model": "demo",
  "messages": [{"role": "user", "content": [
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,'"$image"'"}},
    {"type": "text", "text": "What is in this image?"}
  ]}],
  "temperature": 0
}'
echo
