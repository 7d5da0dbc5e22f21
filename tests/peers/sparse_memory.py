"""Peak memory of one attention forward and backward, tensors included: torch's math path under a mask at TOKENS, in a process of
its own. usage: sparse_memory.py TOKENS HEADS HEAD_DIM; `ds bench sparse` prints what ours takes at ten times the tokens."""
import resource
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as attend

torch.set_num_threads(1)


def run(tokens, heads, dim):
    i = torch.arange(tokens)
    mask = (i[:, None] // 64 - i[None, :] // 64).abs() <= 1
    leaves = [torch.randn(1, heads, tokens, dim).requires_grad_() for _ in range(3)]
    with sdpa_kernel([SDPBackend.MATH]):
        attend(*leaves, attn_mask=mask).backward(torch.randn(1, heads, tokens, dim))


tokens, heads, dim = (int(a) for a in sys.argv[1:4])
run(64, heads, dim)  # what torch itself takes
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(tokens, heads, dim)
print(f"torch, math path, {tokens} tokens: {1.024e-3 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before):.0f} MB")
