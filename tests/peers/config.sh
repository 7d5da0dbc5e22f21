#!/bin/bash
# The JSON reader beside yyjson: the verdict on each file of JSONTestSuite, and the speed on a document of 1 MB. Elastic batch
# sizes beside DeepSpeed's, for settings that are drawn anew.
# environment: YYJSON, the folder of yyjson.c and yyjson.h (src/ of github.com/ibireme/yyjson); DEEPSPEED_PYTHON, a python
#   with deepspeed 0.19.6; B (build), SEED (the clock)
set -u
cd "$(dirname "$0")/../.."
B=${B:-build}
status=0
make -s "$B/ds" || exit 1
out=$(mktemp -d) && trap 'rm -rf "$out"' EXIT
if [ -z "${YYJSON:-}" ]; then
    echo "SKIP JSON: set YYJSON to the folder of yyjson.c and yyjson.h"
else
    ${CC:-cc} -O3 -shared -fPIC -o "$out/libyyjson.so" "$YYJSON/yyjson.c" &&
        ${CC:-cc} -O2 -I"$YYJSON" -o "$out/verdicts" tests/peers/config_yyjson.c "$YYJSON/yyjson.c" || exit 1
    "$out/verdicts" tests/golden/JSONTestSuite/test_parsing/* >"$out/theirs"
    for file in tests/golden/JSONTestSuite/test_parsing/*; do
        "$B/ds" json "$file" >/dev/null 2>&1
        echo "$? $file"
    done >"$out/ours"
    if diff "$out/theirs" "$out/ours"; then
        echo "verdicts of yyjson and ds are the same on $(wc -l <"$out/ours") files"
    else
        status=1
    fi
    "$B/ds" bench config --yyjson "$out/libyyjson.so"
fi
if [ -z "${DEEPSPEED_PYTHON:-}" ]; then
    echo "SKIP elasticity: set DEEPSPEED_PYTHON to a python with deepspeed==0.19.6"
else
    seed=${SEED:-$(date +%s)}
    "$DEEPSPEED_PYTHON" tests/golden/elasticity.py "$seed" >"$out/elastic.json" 2>"$out/err" || { cat "$out/err"; exit 1; }
    "$DEEPSPEED_PYTHON" tests/peers/config.py "$B/ds" "$out/elastic.json" || status=1
    echo "(seed $seed)"
fi
exit $status
