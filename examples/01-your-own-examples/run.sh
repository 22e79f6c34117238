#!/usr/bin/env bash
# From orders.jsonl to a proved bundle. Arguments go to tunesmith, such as: ./run.sh --set train.max_steps=2
set -euo pipefail
cd "$(dirname "$0")"
tunesmith run recipe.yaml --dry-run "$@"
tunesmith run recipe.yaml "$@"
