"""`gear-dist serve`: a trained pair behind HTTP, with a page."""

import argparse
import importlib.util
import os
import sys
from typing import Any

from gear_dist.cli.arguments import add_device, path_argument, read_device, whole
from gear_dist.cli.sample import MODEL_HELP, add_sampling, sampling_from
from gear_dist.errors import ConfigError
from gear_dist.inference.model_folder import ModelFolder, open_model
from gear_dist.runs.environment import num_cores
from gear_dist.serving.settings import ServerSettings

PORT = 8000
_BATCH = {"cpu": 16, "cuda": 32}


def add_commands(subparsers: Any) -> None:
    """Add `serve`."""
    parser = subparsers.add_parser(
        "serve",
        help="answer requests for images over HTTP, and show a page to try the model",
        description="A page at /, images at /v1/images/generations in the shape that OpenAI's "
        "clients send, /v1/reconstruct, /v1/models, /healthz, /metrics; docs/serving.md has them. "
        "Runs on Ray Serve: on the cluster of RAY_ADDRESS, else on this machine.",
    )
    parser.add_argument("model", type=path_argument, metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, this machine alone; 0.0.0.0 lets everyone "
        "in who reaches it)",
    )
    parser.add_argument(
        "--port",
        type=whole(0, 65535),
        default=PORT,
        help=f"port to listen on; 0: any that is free (default: {PORT})",
    )
    parser.add_argument(
        "--replicas",
        type=whole(1, 1024),
        help="processes, each with the whole model (default: one for each GPU, else 1)",
    )
    parser.add_argument(
        "--queue",
        type=whole(1, 100_000),
        default=256,
        help="images that may wait for a replica; more are answered 429 (default: 256)",
    )
    parser.add_argument(
        "--max-images",
        type=whole(1, 1024),
        default=16,
        help="images of a request, at most (default: 16)",
    )
    parser.add_argument(
        "--threads",
        type=whole(1, 1024),
        help="of each replica on a CPU (default: its share of the cores)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check the model and the address, and start nothing"
    )
    add_sampling(parser)
    add_device(parser)
    parser.set_defaults(run=run_serve)


def server_settings(
    args: argparse.Namespace, model: ModelFolder, device: str, replicas: int
) -> ServerSettings:
    """What each replica is told, on a device of this type."""
    if args.fixed_batches is None and device == "cuda":
        # Graphs are captured for one batch size; and an image must not depend on its company.
        args.fixed_batches = True
    args.batch = args.batch or _BATCH[device]
    return ServerSettings(
        model=os.path.abspath(args.model),
        sampling=sampling_from(args, model.config.sampling),
        device=device,
        threads=args.threads or max(1, num_cores() // replicas),
        batch=args.batch,
        queue=args.queue,
        images_per_request=min(args.max_images, args.queue),
    )


def run_serve(args: argparse.Namespace) -> int:
    """Serve until a signal."""
    if importlib.util.find_spec("fastapi") is None:
        raise ConfigError("serve needs Ray Serve: pip install 'gear-dist[serve]'")
    import torch

    from gear_dist.inference.decoding.guidance import check_sampling
    from gear_dist.serving.server import check_model, choose_port, run_server

    model = open_model(args.model)
    device = read_device(args).type
    replicas = args.replicas or (torch.cuda.device_count() if device == "cuda" else 1)
    settings = server_settings(args, model, device, replicas)
    check_model(model)
    if "generator" in model.weights:
        config = model.config
        check_sampling(settings.sampling, config.generator, config.tokenizer.codebook_size)
    port = choose_port(args.host, args.port)
    if args.dry_run:
        print(f"{args.model} can be served at http://{args.host}:{port}")
        return 0
    print(f"starting Ray Serve with {replicas} x {args.model} on {device}", file=sys.stderr)
    run_server(settings, host=args.host, port=port, replicas=replicas, gpus=int(device == "cuda"))
    return 0
