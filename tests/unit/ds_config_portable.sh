#!/bin/sh
# The JSON reader without SSE2, 128-bit products and known byte order, as other machines have it: the same tests.
# environment: CC
set -u
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if "${CC:-cc}" -std=gnu99 -O1 -w -I. -U__SSE2__ -U__SIZEOF_INT128__ -U__BYTE_ORDER__ -o "$scratch/test" \
    tests/unit/ds_config_test.c -lm && "$scratch/test"; then
    exit 0
fi
echo 'FAIL ds_config_test without SSE2'
echo '0 passed, 1 failed'
exit 1
