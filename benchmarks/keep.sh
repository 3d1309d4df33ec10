#!/usr/bin/env bash
# Copies what a ladder wrote, its pictures and logs left out: keep.sh LADDER_DIR RESULTS_DIR
set -euo pipefail
from=$1
to=$2
[ -f "$from/ladder.json" ] || exit 0
rm -rf "$to"
mkdir -p "$to"
(cd "$from" && find . \( -name 'ladder.*' -o -name report.json \) -print0 | tar -cf - --null -T -) | tar -xf - -C "$to"
