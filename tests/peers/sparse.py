"""ds_sparse.h beside torch's scaled_dot_product_attention with the same mask: the same numbers, and the time of both, in turns,
best of all rounds. The goal is 0.6 / density times as fast. usage: sparse.py LIBRARY TOKENS HEADS HEAD_DIM BLOCK THREADS ROUNDS"""
import ctypes
import sys
import time

import torch
from torch.nn.functional import scaled_dot_product_attention as attend

tokens, heads, dim, block, threads, rounds = (int(a) for a in sys.argv[2:8])
torch.set_num_threads(threads)
torch.manual_seed(1)
lib = ctypes.CDLL(sys.argv[1])
lib.peer_open.restype = ctypes.c_void_p
lib.peer_close.argtypes = [ctypes.c_void_p]
lib.peer_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
n = tokens // block
print(f"{heads} heads of {dim}, {tokens} tokens, blocks of {block}, {threads} threads; torch {torch.__version__}")
print(f"{'layout':24} {'density':>7} {'ours ms, torch ms, forward':>28} {'forward and backward':>24} {'times as fast':>15} {'goal':>6}")
CASES = [
    ("dense", "dense", 3, 0, 0),
    ("window, a 32nd", "local_sliding_window", n // 32 | 1, 0, 0),
    ("window, an 8th", "local_sliding_window", n // 8 | 1, 0, 0),
    ("window, half", "local_sliding_window", n // 2 | 1, 0, 0),
    ("fixed", "fixed", 3, 0, 0),
    ("fixed, causal", "fixed", 3, 0, 1),
    ("bigbird, 2 random", "bigbird", 3, 2, 0),
]


def timed(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


worst = 0.0
for name, mode, window, random, causal in CASES:
    size = (ctypes.c_size_t * 8)(heads, tokens, dim, block, threads, window, random, causal)
    blocks = torch.zeros(n, n, dtype=torch.uint8)
    ours = lib.peer_open(mode.encode(), size, ctypes.c_void_p(blocks.data_ptr()))
    if not ours:
        sys.exit(f"{name}: no such layout at these sizes")
    mask = blocks.bool().repeat_interleave(block, 0).repeat_interleave(block, 1)
    if causal:
        mask &= torch.ones(tokens, tokens, dtype=torch.bool).tril()
    added = torch.zeros(tokens, tokens).masked_fill(~mask, float("-inf"))
    density = mask.float().mean().item()
    q, k, v, g = (torch.randn(1, heads, tokens, dim) for _ in range(4))
    out, dq, dk, dv = (torch.empty_like(q) for _ in range(4))
    lse = torch.empty(heads, tokens, 2)
    pointers = (ctypes.c_void_p * 9)(*(t.data_ptr() for t in (q, k, v, out, lse, g, dq, dk, dv)))
    leaves = [t.clone().requires_grad_() for t in (q, k, v)]

    def run(backward):
        if lib.peer_run(ours, pointers, backward):
            sys.exit(f"{name}: refused")

    best = [float("inf")] * 4  # ours: forward, backward; torch's: forward, backward
    for r in range(rounds + 1):
        took = [timed(lambda: run(0)), timed(lambda: run(1)), float("inf"), float("inf")]
        for kind in (mask, added):  # torch likes one or the other better
            for leaf in leaves:
                leaf.grad = None
            result = []
            took[2] = min(took[2], timed(lambda: result.append(attend(*leaves, attn_mask=kind))))
            took[3] = min(took[3], timed(lambda: result[0].backward(g)))
        if r:  # the first one warms up
            best = [min(a, b) for a, b in zip(best, took)]
    for ours_, theirs in zip((out, dq, dk, dv), [result[0].detach()] + [leaf.grad for leaf in leaves]):
        worst = max(worst, ((ours_ - theirs).abs().max() / theirs.abs().max()).item())
    forward, both = best[2] / best[0], (best[2] + best[3]) / (best[0] + best[1])
    print(
        f"{name:24} {density:7.3f} {1e3 * best[0]:14.2f} {1e3 * best[2]:13.2f} {1e3 * (best[0] + best[1]):12.2f} "
        f"{1e3 * (best[2] + best[3]):11.2f} {forward:7.1f} {both:7.1f} {0.6 / density:6.1f}",
        flush=True,
    )
    lib.peer_close(ours)
print(f"largest difference of results and gradients, over the largest of each: {worst:.2g}")
sys.exit(worst > 1e-4)
