#!/bin/bash
# Fuzzes the readers of checkpoints: safetensors, index, manifest, zip, pickle. Environment and totals: tests/tools/fuzz.sh.
set -u
header=ds_checkpoint short=2400 long=6000 flags="-std=gnu99 -g -I." options=
corpus=tests/fuzz/checkpoint_corpus replayed=()
. tests/tools/fuzz.sh
