"""Writes elasticity.json: batch sizes that DeepSpeed's compute_elastic_config gives, for random settings.
usage: python elasticity.py [SEED] >elasticity.json    (with deepspeed 0.19.6 installed)
A line: world size, batch, micro batch (0, 0: refused), settings."""
import json, logging, random, sys
stdout, sys.stdout = sys.stdout, sys.stderr  # DeepSpeed logs there
import deepspeed
from deepspeed.elasticity.elasticity import compute_elastic_config

logging.disable(logging.CRITICAL)
random.seed(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
rows = []
while len(rows) < 200:
    version = random.choice([0.1, 0.2, 0.2])
    settings = {"enabled": True, "max_train_batch_size": random.choice([32, 100, 256, 1000, 2000, 2048]),
                "micro_batch_sizes": random.sample([1, 2, 3, 4, 6, 8, 16, 24], random.randint(1, 4)),
                "min_gpus": random.choice([1, 1, 2, 4]), "max_gpus": random.choice([8, 64, 1000]), "version": version}
    if version == 0.2:
        settings["num_gpus_per_node"] = random.choice([1, 2, 4, 8])
        settings["model_parallel_size"] = random.choice([1, 1, 2, 4])
    if random.random() < 0.3:
        settings["prefer_larger_batch"] = False
    world = random.choice([1, 2, 3, 4, 6, 8, 16, 32])
    try:
        batch, _, micro = compute_elastic_config({"elasticity": settings}, deepspeed.__version__, world_size=world)
    except Exception:
        batch = micro = 0
    rows.append([world, batch, micro if batch else 0, settings])  # it also gives batches of 0 samples
stdout.write("[" + ",\n".join(json.dumps(row) for row in rows) + "]\n")
