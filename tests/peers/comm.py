"""Times of gloo's collectives between processes of this machine, as lines of name and seconds, best and median of all rounds.
usage: comm.py RANKS BYTES ROUNDS PORT. Needs torch."""
import statistics
import sys
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def timed(call, repeat):
    dist.barrier()
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    dist.barrier()
    return (time.perf_counter() - start) / repeat


def run(rank, ranks, size, rounds, port):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    count = size // 4 // ranks * ranks
    whole, small = torch.zeros(count), torch.zeros(1, dtype=torch.float64)
    part = torch.zeros(count // ranks)
    parts = list(whole.chunk(ranks))
    calls = [
        ("all_reduce", lambda: dist.all_reduce(whole), 1),
        ("all_gather", lambda: dist.all_gather(parts, part), 1),
        ("small", lambda: dist.all_reduce(small), 300),
    ]
    took = {name: [] for name, _, _ in calls}
    for r in range(rounds + 1):
        for name, call, repeat in calls:
            t = timed(call, repeat)
            if r:
                took[name].append(t)
    if rank == 0:
        for name, t in took.items():
            print(f"{name} {min(t):.4g} {statistics.median(t):.4g}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    ranks, size, rounds, port = (int(a) for a in sys.argv[1:5])
    mp.spawn(run, (ranks, size, rounds, port), ranks)
