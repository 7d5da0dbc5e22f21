#!/usr/bin/env python3
"""The part of checkpoint.sh that needs torch, deepspeed and transformers.   usage: checkpoint.py BUILD FOLDER [WORD...]

Trains the model of tests/golden/gpt_torch.json with train_gpt for some steps, hands the checkpoint to DeepSpeed, which goes
on, and compares the losses with those of train_gpt going on itself; then the other way round. The tolerance is the golden's:
what fp32 rounding does to this training. Loading the weights without the optimizer's states must leave it.
Words choose the cases whose names hold one of them."""
import collections, json, os, re, struct, subprocess, sys

os.environ.update(DS_ACCELERATOR='cpu', CUDA_VISIBLE_DEVICES='', TOKENIZERS_PARALLELISM='false', OMP_NUM_THREADS='1')
HERE = os.path.dirname(os.path.abspath(__file__))
GOLDEN = os.path.join(HERE, '..', 'golden')
MASK = (1 << 64) - 1
BEFORE, STEPS = 10, 20


def golden():
    g = json.load(open(os.path.join(GOLDEN, 'gpt_torch.json')))
    run = g['runs'][0]
    largest = max(abs(a - b) for a, b in zip(run['fp32'], run['fp64']))
    return g['model'], json.loads(run['config']), g['seed'], 8 * largest + 4 * 2.0**-21


def sample_at(seed, s, choices):
    x = (seed * 0xD1342543DE82EF95 + s * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return (x ^ (x >> 31)) % choices


def text():
    t = open(os.path.join(GOLDEN, 'gpt_text.txt'), 'rb').read()
    held, before = len(t) // 20, len(t) // 5 * 3  # a twentieth from three fifths on is held out
    return t[:before] + t[before + held:]


# ---- a worker: one rank of DeepSpeed; its own process ----
def worker(load, universal, stage, first, last, save, states, out):
    import torch, deepspeed
    from transformers import GPT2Config, GPT2Model
    model, config, seed, _ = golden()
    rank, world = int(os.environ['RANK']), int(os.environ['WORLD_SIZE'])
    deepspeed.init_distributed(dist_backend='gloo')
    config['zero_optimization'] = {'stage': stage, 'load_from_fp32_weights': True}
    config['optimizer']['params']['torch_adam'] = True
    config['train_micro_batch_size_per_gpu'] //= world
    config['checkpoint'] = {'load_universal': universal}
    config['zero_allow_untested_optimizer'] = True

    class Model(GPT2Model):  # with its parameters' names, and the head tied to wte
        def forward(self, tokens, targets):
            h = super().forward(input_ids=tokens, use_cache=False).last_hidden_state
            logits = h @ self.wte.weight.T
            return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
    net = Model(GPT2Config(vocab_size=model['vocab'], n_positions=model['context'], n_embd=model['channels'],
                           n_layer=model['layers'], n_head=model['heads'], resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
                           attn_implementation='eager', bos_token_id=0, eos_token_id=0))
    engine, _, _, _ = deepspeed.initialize(model=net, config=config, model_parameters=net.parameters())
    if load != '-':
        where, _ = engine.load_checkpoint(load, load_optimizer_states=states)
        assert where, 'nothing was loaded'
        if states:
            assert engine.global_steps == first, engine.global_steps
    data, t, losses = text(), model['context'], []
    accumulation, batch = config['gradient_accumulation_steps'], config['train_micro_batch_size_per_gpu']
    sample = first * accumulation * batch * world
    for step in range(first, last):
        total = 0.0
        for _ in range(accumulation):
            at = [sample_at(seed, sample + rank * batch + b, len(data) - t) for b in range(batch)]
            sample += batch * world
            rows = torch.tensor([list(data[a:a + t + 1]) for a in at])
            loss = engine(rows[:, :-1], rows[:, 1:])
            engine.backward(loss)
            engine.step()
            total += loss.item() / accumulation
        losses.append(total)
    if save != '-':
        engine.save_checkpoint(save)
    json.dump(losses, open('%s.%d' % (out, rank), 'w'))


def spawn(world, arguments):
    ranks = []
    for rank in range(world):
        env = dict(os.environ, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR='127.0.0.1',
                   MASTER_PORT=str(20000 + os.getpid() % 20000))
        ranks.append(subprocess.Popen([sys.executable, __file__, *arguments], env=env, stdout=subprocess.PIPE,
                                      stderr=subprocess.STDOUT, text=True))
    said = [r.communicate()[0] for r in ranks]
    if any(r.returncode for r in ranks):
        raise AssertionError('DeepSpeed failed:\n' + '\n'.join(s[-2000:] for s in said))


def deepspeed_runs(folder, load, universal, stage, world, first, last, save='-', states=True):
    out = os.path.join(folder, 'losses')
    spawn(world, ['--worker', load, str(int(universal)), str(stage), str(first), str(last), save, str(int(states)), out])
    each = [json.load(open('%s.%d' % (out, r))) for r in range(world)]
    return [sum(x) / world for x in zip(*each)]


# ---- ours ----
class Ours:
    def __init__(self, build, folder):
        self.build, self.folder = build, folder
        self.model, self.config, self.seed, self.bound = golden()

    def ds(self, *args):
        subprocess.run([os.path.join(self.build, 'ds'), *args], check=True, stdout=subprocess.DEVNULL)

    def train(self, last, stage=2, world=1, resume=None, save=None):
        csv = os.path.join(self.folder, 'csv')
        config = dict(self.config, zero_optimization={'stage': stage}, train_micro_batch_size_per_gpu=2 // world,
                      csv_monitor={'enabled': True, 'output_path': csv, 'job_name': 'run'})
        path = os.path.join(self.folder, 'config.json')
        json.dump(config, open(path, 'w'))
        command = [os.path.join(self.build, 'ds'), 'run', '-n', str(world), '--', os.path.join(self.build, 'train_gpt'),
                   '--config', path, '--data', os.path.join(GOLDEN, 'gpt_text.txt'), '--steps', str(last), '--generate', '1',
                   '--quiet', '--seed', str(self.seed)]
        for k in ('layers', 'heads', 'channels', 'context'):
            command += ['--' + k, str(self.model[k])]
        command += (['--resume', resume] if resume else []) + (['--save', save] if save else [])
        subprocess.run(['rm', '-rf', csv], check=True)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        rows = open(os.path.join(csv, 'run', 'Train_Samples_train_loss.csv')).read().split()
        return [float(r.split(',')[1]) for r in rows if r[0].isdigit()]


def tensors(path):
    data = open(path, 'rb').read()
    n = struct.unpack('<Q', data[:8])[0]
    out = {}
    for name, t in json.loads(data[8:8 + n]).items():
        if name != '__metadata__':
            out[name] = (t['dtype'], t['shape'], data[8 + n + t['data_offsets'][0]:8 + n + t['data_offsets'][1]])
    return out


def frozen_worker(stage, save):
    """A model of which a part is not trained, some steps, saved; and beside it what its weights are."""
    import torch, deepspeed
    deepspeed.init_distributed(dist_backend='gloo')
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Linear(7, 13), torch.nn.Tanh(), torch.nn.Linear(13, 5))
    for p in net[0].parameters():
        p.requires_grad = False
    want = {k: v.detach().clone() for k, v in net.state_dict().items()}
    trained = [p for p in net.parameters() if p.requires_grad]
    config = {'train_micro_batch_size_per_gpu': 2, 'optimizer': {'type': 'Adam', 'params': {'lr': 0.01, 'torch_adam': True}},
              'zero_optimization': {'stage': stage, 'stage3_param_persistence_threshold': 0}}
    if stage == 0:  # its own optimizer, which cuts as stage 1 does and names no stage
        config.update(bf16={'enabled': True}, data_types={'grad_accum_dtype': 'fp32'}, zero_optimization={'stage': 1})
    engine, _, _, _ = deepspeed.initialize(model=net, config=config, model_parameters=trained)
    engine.save_checkpoint(save)
    if int(os.environ['RANK']) == 0:
        torch.save(want, save + '.want')


def recovered(ours, load, folder, stage, world):
    """What zero_to_fp32.py reads of our ZeRO files of what `load` holds."""
    ours.ds('convert', load, folder, '--to', 'zero%d' % stage, '--ranks', str(world))
    subprocess.run([sys.executable, '-m', 'deepspeed.utils.zero_to_fp32', '--safe_serialization', folder, folder + '.fp32'],
                   check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return tensors(os.path.join(folder + '.fp32', 'model.safetensors'))


def frozen(ours, stage):
    import torch
    folder = os.path.join(ours.folder, 'frozen%d' % stage)
    spawn(2, ['--frozen', str(stage), folder])
    ours.ds('convert', folder, folder + '.safetensors')
    got, want = tensors(folder + '.safetensors'), torch.load(folder + '.want')
    assert set(got) == set(want), set(got) ^ set(want)
    for name, t in want.items():
        dtype = {'F32': torch.float32, 'BF16': torch.bfloat16}[got[name][0]]
        values = torch.frombuffer(bytearray(got[name][2]), dtype=dtype).reshape(got[name][1])
        assert torch.equal(values.float(), t.bfloat16().float() if stage == 0 else t), name
    fp32 = {name: ('F32', list(t.shape), (t.bfloat16() if stage == 0 else t).float().numpy().tobytes()) for name, t in want.items()}
    for to in (1, 3):  # and out again: its script finds what is not trained among the buffers
        assert recovered(ours, folder, '%s.zero%d' % (folder, to), to, 3) == fp32, 'zero_to_fp32.py reads other values'
    return '%d tensors, and back' % len(got)


def near(a, b, bound):
    assert len(a) == len(b) and a, (len(a), len(b))
    worst = max(abs(x - y) for x, y in zip(a, b))
    assert worst <= bound and all(x == x for x in a), 'losses differ by %.3g, bound %.3g' % (worst, bound)
    return worst


def main():
    build, folder = os.path.abspath(sys.argv[1]), sys.argv[2]
    ours = Ours(build, folder)
    own, universal, tally = os.path.join(folder, 'own'), os.path.join(folder, 'universal'), collections.Counter()
    whole = ours.train(STEPS)
    ours.train(BEFORE, save=own, world=2)
    ours.ds('convert', own, universal, '--to', 'universal', '--ranks', '2')
    ours.ds('convert', own, os.path.join(folder, 'model.safetensors'))

    def case(name, f):
        if len(sys.argv) > 3 and not any(word in name for word in sys.argv[3:]):
            return
        try:
            said = f()
            tally['passed'] += 1
            print('ok   %s%s' % (name, '' if said is None else ': %s' % said), flush=True)
        except (AssertionError, subprocess.CalledProcessError, OSError, KeyError) as e:
            tally['failed'] += 1
            print('FAIL %s: %s' % (name, e), flush=True)

    for stage, world in ((1, 1), (2, 2), (3, 1), (3, 2)):
        case('DeepSpeed stage %d on %d goes on from our universal checkpoint' % (stage, world),
             lambda: 'losses within %.2g of ours' % near(
                 deepspeed_runs(folder, universal, True, stage, world, BEFORE, STEPS), whole[BEFORE:], ours.bound))

    def without_states():
        losses = ours.train(STEPS - BEFORE, resume=os.path.join(folder, 'model.safetensors'))
        worst = max(abs(x - y) for x, y in zip(losses, whole[BEFORE:]))
        assert worst > ours.bound, worst
        return 'with the weights alone losses are off by %.2g' % worst
    case('the bound tells', without_states)

    for stage, world in ((1, 2), (2, 1), (3, 2)):
        def back(stage=stage, world=world):
            theirs = os.path.join(folder, 'theirs%d' % stage)
            near(deepspeed_runs(folder, universal, True, stage, world, BEFORE, 15, save=theirs), whole[BEFORE:15], ours.bound)
            return 'losses within %.2g of a run of our own' % near(ours.train(STEPS, stage=3, world=2, resume=theirs),
                                                                    whole[15:], ours.bound)
        case('we go on from a checkpoint of DeepSpeed stage %d on %d' % (stage, world), back)

    for stage, name in ((0, 'of BF16_Optimizer'), (1, 'at stage 1'), (2, 'at stage 2'), (3, 'at stage 3')):
        case('what DeepSpeed does not train %s comes along' % name, lambda: frozen(ours, stage))

    want = tensors(os.path.join(folder, 'model.safetensors'))
    for stage, world in ((1, 2), (2, 3), (3, 2), (3, 5)):
        def recover(stage=stage, world=world):
            zero = os.path.join(folder, 'zero%d.%d' % (stage, world))
            assert recovered(ours, own, zero, stage, world) == want, 'other values'
        case('zero_to_fp32.py reads our ZeRO-%d files of %d ranks, to the bit' % (stage, world), recover)

    def logits():
        import torch
        from transformers import AutoModelForCausalLM
        hf, m = os.path.join(folder, 'hf'), ours.model
        os.makedirs(hf)
        ours.ds('convert', own, os.path.join(hf, 'model.safetensors'), '--max-shard-bytes', '60000')
        assert os.path.exists(os.path.join(hf, 'model.safetensors.index.json')), 'no shards'
        json.dump({'model_type': 'gpt2', 'vocab_size': m['vocab'], 'n_positions': m['context'], 'n_embd': m['channels'],
                   'n_layer': m['layers'], 'n_head': m['heads'], 'bos_token_id': 0, 'eos_token_id': 0},
                  open(os.path.join(hf, 'config.json'), 'w'))
        net, loading = AutoModelForCausalLM.from_pretrained(hf, output_loading_info=True)
        assert not loading['missing_keys'] and not loading['unexpected_keys'], loading
        line = text()[:m['context']]
        printed = subprocess.run([os.path.join(folder, 'logits'), os.path.join(hf, 'model.safetensors.index.json'),
                                  *[str(m[k]) for k in ('vocab', 'context', 'layers', 'heads', 'channels')]],
                                 input=line, stdout=subprocess.PIPE, check=True).stdout
        mine = torch.frombuffer(bytearray(printed), dtype=torch.float32).reshape(m['context'], m['vocab'])
        with torch.no_grad():
            theirs = net.eval()(torch.tensor([list(line)])).logits[0]
            exact = net.double()(torch.tensor([list(line)])).logits[0]
        rounding = (theirs.double() - exact).abs().max().item()
        worst = (mine.double() - exact).abs().max().item()
        assert worst <= 8 * rounding, (worst, rounding)
        return '%d of them, off by %.2g from fp64, transformers by %.2g; largest %.2g' % (
            mine.numel(), worst, rounding, theirs.abs().max().item())
    case('transformers opens our shards and gives the same logits', logits)

    def reader():
        from safetensors import safe_open
        with safe_open(os.path.join(folder, 'model.safetensors'), 'pt') as f:
            assert f.metadata()['format'] == 'pt' and set(f.keys()) == set(want)
            for name in f.keys():
                assert f.get_tensor(name).numpy().tobytes() == want[name][2], name
    case("safetensors' own reader opens our file", reader)
    print('%d passed, %d failed' % (tally['passed'], tally['failed']))
    return tally['failed'] != 0


if sys.argv[1] == '--frozen':
    frozen_worker(int(sys.argv[2]), sys.argv[3])
elif sys.argv[1] == '--worker':
    load, universal, stage, first, last, save, states, out = sys.argv[2:]
    worker(load, universal == '1', int(stage), int(first), int(last), save, states == '1', out)
else:
    sys.exit(main())
