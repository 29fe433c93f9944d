import sys, statistics, itertools
from unittest import mock
import torch
from decode import *
from tuneserve.kernels.gpu import matvec as mv, decode_attention as da
import tuneserve.model._gpu as G
torch.manual_seed(0)
spec = spec_of(sys.argv[1]); weights = random_weights(spec)
def step(batch, steps=60):
    run = Run(spec, weights, batch, 160)
    prompts = torch.randint(0, spec.vocab_size, (batch, 32), device="cuda")
    run.prefill(prompts)
    for _ in range(8): run.decoder.decode(batch)
    a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(); a.record()
    for _ in range(steps): run.decoder.decode(batch)
    b.record(); torch.cuda.synchronize()
    return a.elapsed_time(b) / steps
for fused in (False, True):
  for plain, gated in (((4, 512, 4), (2, 512, 4)), ((8, 256, 4), (4, 256, 4)), ((8, 512, 4), (4, 512, 4)), ((4, 512, 2), (2, 512, 2)), ((8, 512, 8), (4, 512, 8)), ((4, 1024, 4), (2, 1024, 4)), ((4, 1024, 8), (2, 1024, 8))):
    with mock.patch.object(mv, "shape_of", lambda c, g: gated if g else plain), mock.patch.object(G, "FUSED", fused):
        print("batch 1", fused, plain, gated, round(step(1), 3), flush=True)
with mock.patch.object(mv, "shape_of", lambda c, g: (2, 512, 4) if g else (4, 512, 4)):
  for cfg in ((64, 2, 2), (64, 4, 2), (32, 1, 2)):
    with mock.patch.multiple(da, _TILE=cfg[0], _WARPS=cfg[1], _STAGES=cfg[2]):
        print("attention", cfg, round(step(1), 3), flush=True)
