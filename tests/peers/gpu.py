"""Times on this machine's GPU, for tests/peers/gpu.sh: a copy, torch's fused AdamW and norm, and FlexAttention on the layouts
of `ds layout`. usage: gpu.py LAYOUTS; LAYOUTS is a folder with files MODE.BLOCK. Needs torch with CUDA."""
import os
import sys

import torch

folder = sys.argv[1]
HEADS, D, TOKENS, ELEMENTS = 16, 64, 8192, 1 << 27
if not torch.cuda.is_available():
    sys.exit("torch sees no GPU")


def best(work, turns=12):
    """The best of `turns`, in seconds, as gpu_bench takes it."""
    took = []
    for turn in range(turns):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        if turn > 1:
            took.append(start.elapsed_time(end) * 1e-3)
    return min(took)


a, b = torch.zeros(ELEMENTS, device="cuda"), torch.zeros(ELEMENTS, device="cuda")
copy = 8 * ELEMENTS / best(lambda: a.copy_(b))
print(f"torch {torch.__version__} on {torch.cuda.get_device_name()}: copy on the device {copy * 1e-9:.1f} GB/s")


def row(name, bytes_, seconds):
    print(f"{name:34} {bytes_ / seconds * 1e-9:9.1f} GB/s  {bytes_ / seconds / copy:5.2f} of copy", flush=True)


del a, b
p = torch.nn.Parameter(torch.zeros(ELEMENTS, device="cuda"))
p.grad = torch.zeros_like(p)
adam = torch.optim.AdamW([p], fused=True)
row("torch fused AdamW, fp32", 28 * ELEMENTS, best(adam.step))
many = [torch.nn.Parameter(torch.zeros(ELEMENTS // 1000 // (1 + i % 4) // 4 * 4, device="cuda")) for i in range(1000)]
for q in many:
    q.grad = torch.zeros_like(q)
adam_many = torch.optim.AdamW(many, fused=True)
row("torch fused AdamW, 1,000 mixed", 28 * sum(q.numel() for q in many), best(adam_many.step))
row("torch norm, fp32", 4 * ELEMENTS, best(lambda: torch.nn.utils.get_total_norm([p.grad])))
del p, adam, many, adam_many

from torch.nn.attention.flex_attention import create_block_mask, flex_attention  # noqa: E402

flex = torch.compile(flex_attention)
q, k, v = (torch.randn(1, HEADS, TOKENS, D, device="cuda", dtype=torch.float16, requires_grad=True) for _ in range(3))


def attention(mask):
    forward = best(lambda: flex(q, k, v, block_mask=mask))
    out = flex(q, k, v, block_mask=mask)
    gradient = torch.randn_like(out)
    return forward, best(lambda: out.backward(gradient, retain_graph=True))


for name in sorted(os.listdir(folder)):
    mode, block = name.split(".")
    lines = [line for line in open(os.path.join(folder, name)).read().split("\n") if line and not line.startswith("head")]
    rows = TOKENS // int(block)
    layout = torch.tensor([[int(c) for c in line if c in "01"] for line in lines], device="cuda", dtype=torch.bool)
    layout = layout.view(HEADS, rows, rows)
    size = int(block)

    def allowed(_, h, i, j):
        return layout[h, i // size, j // size]

    mask = create_block_mask(allowed, None, HEADS, TOKENS, TOKENS, device="cuda", BLOCK_SIZE=max(size, 128))
    forward, backward = attention(mask)
    print(f"FlexAttention fp16 {mode:22} block {block:4} density {layout.float().mean():.3f} forward "
          f"{forward * 1e3:9.3f} ms, backward {backward * 1e3:9.3f} ms", flush=True)
