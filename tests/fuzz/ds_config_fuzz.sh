#!/bin/bash
# Fuzzes the configuration and JSON readers: short texts are JSON itself, long ones whole configurations. The corpus is replayed
# with every file of JSONTestSuite. Environment and totals: tests/tools/fuzz.sh.
set -u
header=ds_config short=64 long=1400 flags="-std=gnu11 -g -I." options=-detect_leaks=0
corpus=tests/fuzz/config_corpus replayed=(tests/golden/JSONTestSuite/test_parsing/*)
. tests/tools/fuzz.sh
