#!/usr/bin/env python3
"""Makes the .pt files of DeepSpeed checkpoints that checkpoint.json describes, and checks what ds makes of them.

usage: checkpoint_files.py DS FOLDER     needs nothing but Python: torch's classes are stand-ins with its names, so that
                                         Python's own pickler writes what torch.save writes
"""
import json, os, pickle, struct, subprocess, sys, types, zipfile, collections, io

FORMATS = {'float32': ('FloatStorage', 'f', 4), 'float64': ('DoubleStorage', 'd', 8), 'int64': ('LongStorage', 'q', 8),
           'bfloat16': ('BFloat16Storage', None, 2), 'float16': ('HalfStorage', 'e', 2), 'bool': ('BoolStorage', '?', 1)}


def stand_in(module, name):
    parts = module.split('.')
    for i in range(1, len(parts) + 1):
        sys.modules.setdefault('.'.join(parts[:i]), types.ModuleType('.'.join(parts[:i])))
    m = sys.modules[module]
    if not hasattr(m, name):
        setattr(m, name, type(name, (), {'__module__': module}))
    return getattr(m, name)


def function(module, name):
    stand_in(module, name)
    def f(*args): pass
    f.__module__, f.__name__, f.__qualname__ = module, name, name
    setattr(sys.modules[module], name, f)
    return f


REBUILD = function('torch._utils', '_rebuild_tensor_v2')


class Storage:
    def __init__(self, dtype, values):
        self.dtype, self.values = dtype, values


class Tensor:
    def __init__(self, shape, storage):
        self.shape, self.storage = shape, storage

    def __reduce__(self):
        strides, n = [], 1
        for s in reversed(self.shape):
            strides.insert(0, n)
            n *= s
        return REBUILD, (self.storage, 0, tuple(self.shape), tuple(strides), False, collections.OrderedDict())


def number(v):
    if v is None:
        return 0.0
    return float.fromhex(v) if isinstance(v, str) else v


def value(v):
    if isinstance(v, str) and v.lstrip('-').startswith('0x'):
        return float.fromhex(v)
    return v


def build(x):
    if 'tensor' in x:
        if x['dtype'] not in FORMATS:
            raise ValueError(x['dtype'])
        return Tensor(x['tensor'], Storage(x['dtype'], [number(v) for v in x.get('values', [])]))
    if 'dict' in x:
        d = collections.OrderedDict() if x.get('class') == 'OrderedDict' else {}
        for k, v in x['dict'].items():
            d[int(k[5:]) if k.startswith('<int>') else k] = build(v)
        return d
    if 'list' in x:
        return [build(v) for v in x['list']]
    if 'tuple' in x:
        return tuple(build(v) for v in x['tuple'])
    if 'object' in x:
        module, name = x['object'].rsplit('.', 1)
        o = stand_in(module, name)()
        for k, v in x.get('attributes', {}).items():
            setattr(o, k, build(v))
        return o
    return value(x.get('value'))


class Pickler(pickle.Pickler):
    def __init__(self, out):
        super().__init__(out, 2)
        self.storages = []

    def persistent_id(self, o):
        if isinstance(o, Storage):
            self.storages.append(o)
            return ('storage', stand_in('torch', FORMATS[o.dtype][0]), str(len(self.storages) - 1), 'cpu', len(o.values))


def raw(s):
    _, code, _ = FORMATS[s.dtype]
    if code is None:  # the values are exact in bf16
        return b''.join(struct.pack('<f', v)[2:] for v in s.values)
    return struct.pack('<%d%s' % (len(s.values), code), *[int(v) if code == 'q' else v for v in s.values])


def save(path, description):
    out = io.BytesIO()
    p = Pickler(out)
    p.dump(build(description))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as z:
        z.writestr('archive/data.pkl', out.getvalue())
        z.writestr('archive/byteorder', 'little')
        for i, s in enumerate(p.storages):
            z.writestr('archive/data/%d' % i, raw(s))
        z.writestr('archive/version', '3\n')


def make(folder, content, below=''):
    for name, d in content.items():
        path = os.path.join(folder, below, name)
        if name.endswith('.pt'):
            save(path, d)
        elif 'text' in d:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            open(path, 'w').write(d['text'])


def read_safetensors(path):
    data = open(path, 'rb').read()
    n = struct.unpack('<Q', data[:8])[0]
    header = json.loads(data[8:8 + n])
    out = {}
    for name, t in header.items():
        if name == '__metadata__':
            continue
        a, b = t['data_offsets']
        if t['dtype'] == 'F32':
            out[name] = (t['shape'], list(struct.unpack('<%df' % ((b - a) // 4), data[8 + n + a:8 + n + b])))
    return out


def check(ds, folder, case, universal):
    """Every fp32 weight and moment against those of the universal checkpoint that DeepSpeed made of the same."""
    out = os.path.join(folder, 'ours')
    subprocess.run([ds, 'convert', os.path.join(folder, 'theirs'), out], check=True)
    tag = open(os.path.join(out, 'latest')).read()
    got = read_safetensors(os.path.join(out, tag, 'rank-00000.safetensors'))
    seen = 0
    for name, d in universal.items():
        parts = name.split('/')
        if len(parts) != 3 or parts[2] == 'step.pt':
            continue
        t = d['dict']['param'] if 'dict' in d else d
        if 'tensor' not in t or t['dtype'] != 'float32':
            continue
        key = parts[1] if parts[2] == 'fp32.pt' else 'optimizer.%s.%s' % (parts[2][:-3], parts[1])
        want = [number(v) for v in t['values']]
        if key not in got:
            raise AssertionError('%s: %s is missing' % (case, key))
        shape, values = got[key]
        n = 1
        for size in shape:
            n *= size
        # stage 3's universal tensors are flat and may be padded
        if len(values) != n or len(want) < n or [struct.pack('<f', v) for v in values] != [struct.pack('<f', v) for v in want[:n]]:
            raise AssertionError('%s: %s differs' % (case, key))
        seen += 1
    if not seen:
        raise AssertionError('%s: nothing to compare' % case)
    subprocess.run([ds, 'inspect', out, '--json'], check=True, stdout=subprocess.DEVNULL)


def main():
    ds, folder = sys.argv[1:3]
    passed = failed = skipped = 0
    for case in json.load(open(os.path.join(os.path.dirname(__file__), 'checkpoint.json'))):
        content = {k: v for k, v in case['expect']['content'].items() if k == 'latest' or k.endswith('.pt')}
        universal = case['expect'].get('universal', {}).get('content')
        if not universal:
            print('SKIP %s: it has no universal checkpoint to compare with' % case['name'])
            skipped += 1
            continue
        for kind in ('zero', 'universal'):
            name = '%s/%s' % (case['name'], kind)
            where = os.path.join(folder, case['name'], kind)
            try:
                if kind == 'zero':
                    make(os.path.join(where, 'theirs'), content)
                else:
                    make(os.path.join(where, 'theirs'), universal, 'tag')
                    open(os.path.join(where, 'theirs', 'latest_universal'), 'w').write('tag')
                check(ds, where, name, universal)
                passed += 1
            except (AssertionError, subprocess.CalledProcessError) as e:
                print('FAIL %s: %s' % (name, e))
                failed += 1
    print('%d passed, %d failed, %d skipped' % (passed, failed, skipped))
    return failed != 0


sys.exit(main())
