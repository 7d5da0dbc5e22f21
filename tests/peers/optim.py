"""Times of PyTorch's and DeepSpeed's optimizer steps on this machine, best of many, as lines of name and milliseconds.
usage: optim.py ELEMENTS THREADS ROUNDS [best | avx2]. Needs torch; DeepSpeed's lines need deepspeed (0.19.6) and a C++ compiler.
With avx2 they are built as DeepSpeed builds them where there is no AVX-512."""
import os
import sys
import tempfile
import time

os.environ.setdefault("DS_ACCELERATOR", "cpu")
import torch

elements, threads, rounds = (int(a) for a in sys.argv[1:4])
if sys.argv[4:] == ["avx2"]:  # its builds are kept apart
    os.environ["TORCH_EXTENSIONS_DIR"] = os.path.join(tempfile.gettempdir(), "deepspeed_avx2")
torch.set_num_threads(threads)


def best(step, warm=2):
    for _ in range(warm):
        step()
    took = []
    for _ in range(rounds):
        start = time.perf_counter()
        step()
        took.append(time.perf_counter() - start)
    return 1e3 * min(took)


def say(name, value):
    print(f"{name} {value:.4f}", flush=True)


def parameter(count, dtype=torch.float32):
    p = torch.nn.Parameter(torch.rand(count).to(dtype))
    p.grad = (0.01 * torch.rand(count)).to(dtype)
    return p


def lamb(p, g, m, v, lr=1e-4, b1=0.9, b2=0.999, eps=1e-8, wd=0.01):
    """A plain LAMB of torch operations."""
    m.mul_(b1).add_(g, alpha=1 - b1)
    v.mul_(b2).addcmul_(g, g, value=1 - b2)
    u = m / (v.sqrt() + eps)
    u.add_(p, alpha=wd)
    ratio = (p.norm() / u.norm()).clamp(0.01, 10.0)
    p.add_(u * (-lr * ratio))


p = parameter(elements)
say("torch_adamw_fused", best(torch.optim.AdamW([p], lr=1e-4, fused=True).step))
say("torch_adamw_foreach", best(torch.optim.AdamW([p], lr=1e-4, foreach=True).step))
say("torch_sgd_momentum_fused", best(torch.optim.SGD([p], lr=1e-4, momentum=0.9, fused=True).step))
with torch.no_grad():
    m, v = torch.zeros(elements), torch.zeros(elements)
    say("torch_lamb", best(lambda: lamb(p.data, p.grad, m, v)))
    del m, v
small = [parameter(1024) for _ in range(1000)]
say("torch_thousand_foreach", best(torch.optim.AdamW(small, lr=1e-4, foreach=True).step, 10))
say("torch_thousand_fused", best(torch.optim.AdamW(small, lr=1e-4, fused=True).step, 10))

try:
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    from deepspeed.ops.op_builder.builder import OpBuilder
except ImportError:
    sys.exit(0)
if sys.argv[4:] == ["avx2"]:  # what simd_width() and cpu_arch() of its builder give on such a machine
    OpBuilder.simd_width = lambda self: "-D__AVX256__"
    OpBuilder.cpu_arch = lambda self: "-march=x86-64-v3"
say("deepspeed_cpuadam_fp32", best(DeepSpeedCPUAdam([p], lr=1e-4).step))
half = parameter(elements, torch.bfloat16)
say("deepspeed_cpuadam_bf16", best(DeepSpeedCPUAdam([half], lr=1e-4).step))
# what DeepSpeed's offloaded stages do in a step: gradients to fp32, their norm, unscale and clip, Adam, weights to bf16
optimizer = DeepSpeedCPUAdam([p], lr=1e-4)
grads = half.grad


def separate():
    p.grad.copy_(grads)
    norm = p.grad.norm()
    p.grad.mul_(1.0 / max(1.0, float(norm)))
    optimizer.step()
    half.data.copy_(p.data)


say("deepspeed_separate_passes", best(separate))
