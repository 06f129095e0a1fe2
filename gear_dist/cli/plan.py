"""`gear-dist plan CONFIG ... [key=value ...]`: what a run will cost."""

import argparse
import json
from typing import Any

from gear_dist.cli.arguments import number, whole
from gear_dist.cli.config_arguments import add_config_words
from gear_dist.errors import EXIT_DONE


def add_commands(subparsers: Any) -> None:
    """Add `plan` to the command line."""
    parser = subparsers.add_parser(
        "plan",
        help="what a run will cost: memory, arithmetic, communication, time",
        description="Plan a run on GPUs: memory per GPU, arithmetic per image, communication per "
        "step, step time, checkpoints, data. Needs no GPU, corpus or weights. Rates that are not "
        "given are a share of published peaks; the output names them.",
    )
    add_config_words(parser)
    parser.add_argument(
        "--gpus", type=whole(1), default=8, help="workers, one per GPU (default: 8)"
    )
    parser.add_argument("--gpus-per-node", type=whole(1), default=8, help="default: 8")
    rates = (
        ("bf16", "--tflops", "products in bf16, TFLOP/s"),
        ("tf32", "--tflops-tf32", "convolutions of fp32 tensors, TFLOP/s"),
        ("fp32", "--tflops-fp32", "other products in fp32, TFLOP/s"),
        ("memory", "--memory-bandwidth", "a GPU's memory, GB/s"),
        ("node_network", "--node-network", "a GPU's link inside a node, GB/s"),
        ("network", "--network", "a GPU's share of the link between nodes, GB/s"),
        ("host", "--host-link", "a GPU's link to its host's memory, GB/s"),
        ("storage", "--storage", "a node's link to storage, GB/s"),
    )
    for name, option, meaning in rates:
        parser.add_argument(
            option, dest=name, type=number(high=1e9, above=True), metavar="RATE", help=meaning
        )
    parser.add_argument(
        "--image-kb",
        type=number(high=1e9, above=True),
        default=115.44,
        help="mean size of an encoded image, kB (default: ImageNet's 115.44)",
    )
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from gear_dist.config.loading import load_config
    from gear_dist.planning.hardware import PEAKS, make_rates
    from gear_dist.planning.plan import plan_costs
    from gear_dist.planning.text import format_plan, plan_to_dict

    config = load_config(args.configs, args.overrides)
    rates = make_rates({name: getattr(args, name) for name in PEAKS}, args.gpus_per_node)
    plan = plan_costs(
        config,
        world_size=args.gpus,
        rates=rates,
        on_cuda=config.run.device != "cpu",
        image_bytes=round(1e3 * args.image_kb),
    )
    print(json.dumps(plan_to_dict(plan)) if args.json else format_plan(plan))
    return EXIT_DONE
