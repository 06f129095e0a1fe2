"""The collectives of one training step by update, as DeepSpeed really makes them."""

import torch

from collective_tally import CollectiveTally
from gear_dist.config import RunConfig
from gear_dist.engines import prepare_deepspeed
from gear_dist.networks import Networks
from gear_dist.steps import discriminator_step, generator_step, tokenizer_step
import joint_step_case as case

CPU = torch.device("cpu")

def counted_step(rank, config: RunConfig, micro: int):
    prepare_deepspeed(CPU)
    torch.manual_seed(0)
    networks = Networks("joint", config, {}, teacher_widths=(20,), world_size=2, device=CPU)
    batch = case.split_batch(case.reference_batch(), rank, 2)
    out = []
    engines = networks.engines
    for step in range(2):
        tallies = {}
        def tally(name, run):
            with tallies.setdefault(name, CollectiveTally()):
                return run()
        for i in range(micro):
            done = tally(f"tokenizer{i}", lambda: tokenizer_step(engines["tokenizer"], engines["discriminator"], engines["generator"], batch, config, adversarial=True))
            tally(f"discriminator{i}", lambda: discriminator_step(engines["discriminator"], batch.images, done.reconstruction))
            tally(f"generator{i}", lambda: generator_step(engines["generator"], done.indices_BL, batch, config))
            for n, e in engines.items():
                tally(f"step {n}{i}", lambda: e.step(1e-4))
    out = {n: (dict(t.calls), dict(t.bytes)) for n, t in tallies.items()}
    counts = {n: sum(getattr(p, "ds_numel", p.numel()) for p in e.module.parameters()) for n, e in engines.items()}
    networks.close()
    return counts, out
