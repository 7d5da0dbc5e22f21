#!/usr/bin/env python3
"""Makes gpt_torch.json: losses of the model of examples/gpt.h, trained by PyTorch on the CPU.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install torch && /tmp/venv/bin/python tests/golden/gpt_torch.py

The network, the initial values (a hash of each element's place), the order of samples (a hash of their numbers) and
DeepSpeed's WarmupLR are written here a second time, from their definitions; products, derivatives and the optimizers are
PyTorch's. Each run is done twice, in fp32 and in fp64 from the same fp32 start: their difference shows what fp32 rounding
does to this very training, and the test takes its tolerance from it. The last runs have one wrong detail each; they show that
the tolerance would not let such a detail pass. gpt_text.txt is the beginning of Milton's Areopagitica (1644).
"""
import json
import math
import os
import platform

import torch
import torch.nn.functional as F

HERE = os.path.dirname(os.path.abspath(__file__))
MASK = (1 << 64) - 1
SHAPE = dict(vocab=256, context=32, layers=2, heads=2, channels=32)
MICRO, ACCUMULATION, STEPS, SEED = 2, 2, 20, 1
CONFIG = {
    "train_micro_batch_size_per_gpu": MICRO,
    "gradient_accumulation_steps": ACCUMULATION,
    "gradient_clipping": 1.0,
    "optimizer": {"type": "AdamW", "params": {"lr": 5e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": 1e-3, "warmup_max_lr": 5e-3, "warmup_num_steps": 10,
                                                 "warmup_type": "linear"}},
    "zero_optimization": {"stage": 0},
}


def mix(x):
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def normal(seed, tensor, element):
    a, b = (mix((seed + 0x9E3779B97F4A7C15 * (tensor * 0x100000001B3 + element * 2 + k + 1)) & MASK) for k in (0, 1))
    return math.sqrt(-2.0 * math.log(((a >> 11) + 1.0) * 2.0**-53)) * math.cos(6.283185307179586 * (b >> 11) * 2.0**-53)


def sample_at(seed, s, choices):
    return mix((seed * 0xD1342543DE82EF95 + s * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & MASK) % choices


def tensors():
    """Shape, deviation and constant of each tensor, in the model's order."""
    c, residual = SHAPE["channels"], 0.02 / math.sqrt(2.0 * SHAPE["layers"])
    block = [((c,), 0, 1), ((c,), 0, 0), ((c, 3 * c), 0.02, 0), ((3 * c,), 0, 0), ((c, c), residual, 0), ((c,), 0, 0),
             ((c,), 0, 1), ((c,), 0, 0), ((c, 4 * c), 0.02, 0), ((4 * c,), 0, 0), ((4 * c, c), residual, 0), ((c,), 0, 0)]
    return ([((SHAPE["vocab"], c), 0.02, 0), ((SHAPE["context"], c), 0.01, 0)] + block * SHAPE["layers"] +
            [((c,), 0, 1), ((c,), 0, 0)])


def initial():
    out = []
    for i, (shape, deviation, value) in enumerate(tensors()):
        n = math.prod(shape)
        if deviation == 0:
            out.append(torch.full(shape, float(value)))
            continue
        z = torch.tensor([normal(SEED, i, e) for e in range(n)], dtype=torch.float64).to(torch.float32)
        out.append((z * torch.tensor(deviation, dtype=torch.float32)).reshape(shape))
    return out


def loss_of(p, tokens, targets):
    c, h = SHAPE["channels"], SHAPE["heads"]
    b, t = tokens.shape
    x = p[0][tokens] + p[1][:t]
    for l in range(SHAPE["layers"]):
        w = p[2 + 12 * l:14 + 12 * l]
        q, k, v = (F.layer_norm(x, (c,), w[0], w[1], 1e-5) @ w[2] + w[3]).split(c, dim=2)
        q, k, v = (y.reshape(b, t, h, c // h).transpose(1, 2) for y in (q, k, v))
        scores = q @ k.transpose(2, 3) / math.sqrt(c // h)
        scores = scores.masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), float("-inf"))
        mixed = (scores.softmax(3) @ v).transpose(1, 2).reshape(b, t, c)
        x = x + mixed @ w[4] + w[5]
        x = x + F.gelu(F.layer_norm(x, (c,), w[6], w[7], 1e-5) @ w[8] + w[9], approximate="tanh") @ w[10] + w[11]
    logits = F.layer_norm(x, (c,), p[-2], p[-1], 1e-5) @ p[0].T
    return F.cross_entropy(logits.reshape(b * t, -1), targets.reshape(-1))


def warmup(config, step):
    """DeepSpeed's WarmupLR: step k uses the value of last_batch_iteration k - 1; the very first the minimum."""
    s = config["scheduler"]["params"]
    low, high, n, last = s["warmup_min_lr"], s["warmup_max_lr"], s["warmup_num_steps"], step - 1
    if last < 0:
        return low
    if last >= n:
        return high
    gamma = last / n if s["warmup_type"] == "linear" else math.log(last + 1) / math.log(n)
    return low + (high - low) * gamma


def train(config, start, text, dtype, late=0, summed=False):
    p = [x.to(dtype).clone().requires_grad_() for x in start]
    o = config["optimizer"]["params"]
    decoupled = config["optimizer"]["type"] == "AdamW" or o.get("adam_w_mode", True)  # as DeepSpeed decides
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    optimizer = kind(p, lr=o["lr"], betas=o["betas"], eps=o["eps"], weight_decay=o["weight_decay"])
    t, losses, norms, sample = SHAPE["context"], [], [], 0
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = warmup(config, step - late)
        optimizer.zero_grad()
        total = 0.0
        for _ in range(ACCUMULATION):
            at = [sample_at(SEED, sample + b, len(text) - t) for b in range(MICRO)]
            sample += MICRO
            rows = torch.tensor([list(text[a:a + t + 1]) for a in at])
            loss = loss_of(p, rows[:, :-1], rows[:, 1:])
            (loss if summed else loss / ACCUMULATION).backward()
            total += loss.item() / ACCUMULATION
        norm = torch.sqrt(sum((x.grad.double() ** 2).sum() for x in p)).item()
        clip = config["gradient_clipping"]
        if clip and norm > clip:
            for x in p:
                x.grad.mul_(clip / (norm + 1e-6))
        optimizer.step()
        losses.append(total)
        norms.append(norm)
    return losses, norms


def changed(**changes):
    config = json.loads(json.dumps(CONFIG))
    for path, value in changes.items():
        *parents, last = path.split("__")
        at = config
        for name in parents:
            at = at[name]
        at[last] = value
    return config


def main():
    torch.set_num_threads(1)
    with open(os.path.join(HERE, "gpt_text.txt"), "rb") as f:
        text = f.read()
    held, before = len(text) // 20, len(text) // 5 * 3  # a twentieth from three fifths on is held out
    text = text[:before] + text[before + held:]
    start = initial()
    configs = {
        "adamw": CONFIG,
        "adam_l2": changed(optimizer__type="Adam", optimizer__params__adam_w_mode=False),
        "clip": changed(gradient_clipping=0.5),
        "no_clip": changed(gradient_clipping=0.0),
        "log_warmup": changed(scheduler__params__warmup_type="log"),
    }
    out = {
        "made_by": "tests/golden/gpt_torch.py",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "model": SHAPE,
        "steps": STEPS,
        "seed": SEED,
        "runs": [],
        "wrong": [],
    }
    for name, config in configs.items():
        fp32, norms = train(config, start, text, torch.float32)
        fp64, _ = train(config, start, text, torch.float64)
        out["runs"].append({"name": name, "config": json.dumps(config), "fp32": fp32, "fp64": fp64, "norms": norms})
        print(name, fp64[0], fp64[-1], "norms", min(norms), max(norms),
              "rounding", max(abs(a - b) for a, b in zip(fp32, fp64)))
    reference = out["runs"][0]["fp64"]
    for name, wrong in (("schedule a step late", dict(late=1)), ("gradients not divided by accumulation", dict(summed=True))):
        losses, _ = train(CONFIG, start, text, torch.float64, **wrong)
        out["wrong"].append({"name": name, "of": "adamw", "fp64": losses})
    eps = changed(optimizer__params__eps=1e-6)
    out["wrong"].append({"name": "eps 1e-6", "of": "adamw", "fp64": train(eps, start, text, torch.float64)[0]})
    for w in out["wrong"]:
        print(w["name"], max(abs(a - b) for a, b in zip(w["fp64"], reference)))
    with open(os.path.join(HERE, "gpt_torch.json"), "w") as f:
        json.dump(out, f, indent=1)
        f.write("\n")


main()
