"""Elastic batch sizes of `ds config` beside those of a file that tests/golden/elasticity.py wrote. usage: config.py DS FILE"""
import json, subprocess, sys

rows, differ = json.load(open(sys.argv[2])), 0
for world, batch, micro, settings in rows:
    run = subprocess.run([sys.argv[1], "config", "-", "--world-size", str(world)], capture_output=True, text=True,
                         input=json.dumps({"elasticity": settings}))
    ours = json.loads(run.stdout) if run.returncode == 0 else {"train_batch_size": 0, "train_micro_batch_size_per_gpu": 0}
    if (ours["train_batch_size"], ours["train_micro_batch_size_per_gpu"]) != (batch, micro):
        differ += 1
        print("differs:", world, settings, "DeepSpeed", batch, micro, "ds", run.stderr.strip() or ours["train_batch_size"])
print(f"elastic batch sizes: {len(rows) - differ} of {len(rows)} settings as DeepSpeed")
sys.exit(differ != 0)
