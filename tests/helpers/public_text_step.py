"""Step time and peak memory of the text-to-image generator beside the public layout's computation.

    python tests/helpers/public_text_step.py --layers 12 --width 384 --heads 12

The other side computes what the public layout does: every one of 300 text slots of every caption
through every block, one attention under a dense mask of booleans (B, 1, S, S) of each step, and the
head at all positions, of which those of the text are then left out. Both sides have the same
weights and images; each runs in a process of its own, in turns, so that its peak of memory is its
own.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dense_text_generator import dense_mask, packed_condition
from gear_dist.config.models import GeneratorConfig
from gear_dist.models.generator import TextGenerator
from gear_dist.models.generator.rotary import rotary_table, rotate

SLOTS, MEAN_LENGTH, GRID, CODES = 300, 60, 16, 16384


class PaddedStep:
    """The generator's own modules, put together over all slots."""

    def __init__(self, generator: TextGenerator) -> None:
        self.generator = generator

    def loss(self, text_BTF: Tensor, mask_BT: Tensor, indices_BL: Tensor) -> Tensor:
        generator, config = self.generator, self.generator.config
        text = generator.cls_embedding.cap_proj(text_BTF)
        x = torch.cat([text, generator.tok_embeddings(indices_BL[:, :-1])], dim=1)
        seen = dense_mask(mask_BT, indices_BL.shape[1] - 1, config.text_mask)[:, None]
        head = config.width // config.num_heads
        grid = rotary_table(GRID, head, x.device)[1 : indices_BL.shape[1]]
        own = grid.new_zeros(SLOTS, *grid.shape[1:])
        own[..., 0] = float(config.text_rotary == "identity")
        table = torch.cat([own, grid])
        for block in generator.layers:
            x = self.block(block, x, seen, table)
        logits = generator.output.logits(generator.norm(x))[:, SLOTS - 1 :]
        return F.cross_entropy(logits.flatten(0, 1), indices_BL.flatten())

    @staticmethod
    def block(block, x: Tensor, seen: Tensor, table: Tensor) -> Tensor:
        attention = block.attention

        def by_stream(y: Tensor, module, text_module) -> Tensor:
            if text_module is None:
                return module(y)
            return torch.cat([text_module(y[:, :SLOTS]), module(y[:, SLOTS:])], dim=1)

        normed = by_stream(x, block.attention_norm, block.attention_norm_text)
        qkv = by_stream(normed, attention.wqkv, attention.wqkv_text)
        q, k, v = qkv.unflatten(-1, (3, attention.num_heads, -1)).unbind(2)
        q, k = rotate(q, table), rotate(k, table)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)
        x = x + by_stream(y, attention.wo, attention.wo_text)
        return x + block.feed_forward(block.ffn_norm(x))


def make_batch(images: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Captions of 20 to 100 tokens, 60 on average, in 300 slots."""
    random = torch.Generator().manual_seed(0)
    lengths = torch.linspace(20, 2 * MEAN_LENGTH - 20, images).round().long()
    mask = torch.arange(SLOTS) < lengths[:, None]
    text = torch.randn(images, SLOTS, width, generator=random)
    return text, mask, torch.randint(CODES, (images, GRID**2), generator=random)


def run_side(side: str, args: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a forward and backward, and the process's peak memory."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = GeneratorConfig(
        condition="text",
        width=args.width,
        num_layers=args.layers,
        num_heads=args.heads,
        text_width=args.text_width,
        residual_dropout=0.0,
        feed_forward_dropout=0.0,
        token_dropout=0.0,
        tap_layer=1,
    )
    generator = TextGenerator(config, num_codes=CODES, grid_size=GRID, kernels="auto")
    torch.nn.init.normal_(generator.output.weight, std=0.02)
    text, mask, indices = make_batch(args.images, args.text_width)
    condition = packed_condition(text, mask)
    padded = PaddedStep(generator)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times, loss = [], torch.zeros(())
    for _ in range(args.repeats + 1):
        start = time.perf_counter()
        if side == "packed":
            loss = generator(indices[:, :-1], condition, indices).cross_entropy
        else:
            loss = padded.loss(text, mask, indices)
        loss.backward()
        times.append(time.perf_counter() - start)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": statistics.median(times[1:]),
        "step_mb": (after - before) / 1024,
        "loss": loss.item(),
    }


def main() -> None:
    """Run both sides in turns and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--text-width", type=int, default=1024)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--side", choices=("packed", "padded"))
    args = parser.parse_args()
    if args.side:
        print(json.dumps(run_side(args.side, args)))
        return
    found: dict[str, list[dict[str, float]]] = {"padded": [], "packed": []}
    for _ in range(args.rounds):
        for side, results in found.items():
            command = [sys.executable, str(Path(__file__)), *sys.argv[1:], "--side", side]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            results.append(json.loads(output))
    medians = {
        side: {key: statistics.median(r[key] for r in results) for key in results[0]}
        for side, results in found.items()
    }
    print(json.dumps(medians, indent=1))
    for key in ("seconds", "step_mb"):
        ratio = medians["padded"][key] / medians["packed"][key]
        print(f"{key}: padded / packed = {ratio:.2f}")


if __name__ == "__main__":
    main()
