"""Time of PyTorch's scaled_dot_product_attention under a block mask, forward and backward, best of many, in milliseconds.
usage: sparse.py LAYOUT HEADS TOKENS HEAD_DIM THREADS ROUNDS, LAYOUT a file as `ds layout` prints it"""
import sys
import time

import torch
import torch.nn.functional as F

path = sys.argv[1]
heads, tokens, dim, threads, rounds = (int(a) for a in sys.argv[2:7])
torch.set_num_threads(threads)
layouts = []  # one list of rows per head
for line in open(path):
    if line.startswith("head"):
        layouts.append([])
    else:
        layouts[-1].append([c == "1" for c in line.strip()])
layout = torch.tensor(layouts)
block = tokens // layout.shape[1]
mask = layout.repeat_interleave(block, 1).repeat_interleave(block, 2).unsqueeze(0)
q, k, v = (torch.rand(1, heads, tokens, dim, requires_grad=True) for _ in range(3))
d = torch.rand(1, heads, tokens, dim)
best = [1e9, 1e9]
for _ in range(rounds + 1):
    start = time.perf_counter()
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    middle = time.perf_counter()
    out.backward(d)
    end = time.perf_counter()
    best = [min(best[0], middle - start), min(best[1], end - middle)]
print(f"density {layout.float().mean().item():.4f} forward {1e3 * best[0]:.3f} backward {1e3 * best[1]:.3f}")
