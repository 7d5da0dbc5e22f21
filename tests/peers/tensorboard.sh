#!/bin/bash
# A training's event files, read by TensorBoard's own accumulator: every scalar tag that the CSV files have, with the same steps
# and values. environment: B (build), PYTHON (python3; one that has tensorboard)
set -eu
cd "$(dirname "$0")/../.."
B=${B:-build} python=${PYTHON:-python3}
"$python" -c 'import tensorboard.backend.event_processing.event_accumulator' 2>/dev/null || { echo "no tensorboard: give PYTHON=..., an interpreter that has it"; exit 0; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed "s|build/monitor|$work|" examples/configs/zero3_nvme.json >"$work/config.json"
"$B/ds" run -n 2 -- "$B/train_gpt" --config "$work/config.json" --data tests/golden/gpt_text.txt --layers 2 --heads 2 --channels 32 \
    --context 32 --steps 20 --generate 0 --quiet >/dev/null
"$python" - "$work" <<'PYTHON'
import csv, pathlib, struct, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
root = pathlib.Path(sys.argv[1])
events = sorted(root.rglob("events.out.tfevents.*"))
assert len(events) == 1, events
found = EventAccumulator(str(events[0].parent)).Reload()
tags = found.Tags()["scalars"]
assert tags, "no scalar in " + str(events[0])
tables = {path.stem: path for path in root.rglob("*.csv")}
for tag in tags:
    points = [(e.step, e.value) for e in found.Scalars(tag)]
    table = [p for name, p in tables.items() if name.endswith(tag.replace("/", "_"))]
    assert len(table) == 1, (tag, sorted(tables))
    rows = [(int(r[0]), struct.unpack("f", struct.pack("f", float(r[1])))[0]) for r in list(csv.reader(open(table[0])))[1:]]
    assert points == rows, (tag, points[:3], rows[:3])
    print(f"{tag}: {len(points)} points, as in {table[0].name}")
PYTHON
