#!/usr/bin/env bash
# Three files of different shape to one clean, split dataset. No model is needed. Results go to ./made, or to the folder named.
set -euo pipefail
cd "$(dirname "$0")"
made="${1:-made}"
mkdir -p "$made"
tunesmith data inspect tickets.csv --field prompt=customer --field completion=agent
tunesmith data convert tickets.csv --field prompt=customer --field completion=agent --to chat --out "$made/tickets.jsonl"
tunesmith data make support faq.md --out "$made/faq.jsonl"
tunesmith data check "$made/tickets.jsonl" "$made/faq.jsonl" chats.jsonl --no-model
tunesmith data clean "$made/tickets.jsonl" "$made/faq.jsonl" chats.jsonl --out "$made/clean" \
  --normalize --exact drop --near drop --refusals drop --pii mask --secrets mask
# A sealed dataset is never written over: that of an earlier run of this file goes first.
if [ -f "$made/dataset/manifest.json" ]; then rm -r "$made/dataset"; fi
tunesmith data split "$made/clean/rows.jsonl" --out "$made/dataset" --test 10 --validation 6
tunesmith data stats "$made/dataset" --html "$made/stats.html" --no-tokens
