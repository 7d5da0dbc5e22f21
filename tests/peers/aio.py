"""DeepSpeed's own aio handle in a folder: median write and read in bytes per second at one setting.
usage: aio.py FOLDER MIB BLOCK_SIZE QUEUE_DEPTH THREADS ROUNDS"""
import os
import statistics
import sys
import time

import torch
from deepspeed.ops.op_builder import AsyncIOBuilder

folder = sys.argv[1]
mib, block, depth, threads, rounds = (int(a) for a in sys.argv[2:7])
size = mib << 20
handle = AsyncIOBuilder().load(verbose=False).aio_handle(block, depth, False, True, threads)
buffer = handle.new_cpu_locked_tensor(size, torch.empty(0, dtype=torch.uint8))
buffer.fill_(7)
path = os.path.join(folder, "ds_aio_peer.%d" % os.getpid())
rates = {"write": [], "read": []}
try:
    for round in range(rounds + 1):  # the first writes a new file and is not counted
        for name, call in (("write", handle.sync_pwrite), ("read", handle.sync_pread)):
            start = time.perf_counter()
            call(buffer, path, 0)
            if round:
                rates[name].append(size / (time.perf_counter() - start))
finally:
    if os.path.exists(path):
        os.unlink(path)
print("%.0f %.0f" % (statistics.median(rates["write"]), statistics.median(rates["read"])))
