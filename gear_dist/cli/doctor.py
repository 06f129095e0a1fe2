"""`gear-dist doctor`: is this machine fit for a run? A table of checks, each with its fix.

Heavy packages are imported in child processes: a package that crashes on import is a finding.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from packaging.requirements import Requirement

from gear_dist.cli.arguments import path_argument
from gear_dist.errors import UserError
from gear_dist.formatting import format_bytes
from gear_dist.redaction import redact_text
from gear_dist.runs.environment import (
    cpu_model,
    gpu_driver,
    memory_bytes,
    num_cores,
    unseen_gpu,
)

_GIB = 1024**3
_IMPORT_SECONDS = 120
_EXIT_FAILED = 2

_DEVICES_PROGRAM = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "devices": [
    [torch.cuda.get_device_name(i), torch.cuda.mem_get_info(i)] for i in range(count)]}))
"""
_NATIVE_PROGRAM = """
import warnings
warnings.simplefilter("ignore")
from pathlib import Path
from gear_data_prep.images.native import load_native
from gear_dist import native
decoding = Path(native.__file__).parent / "inference" / "decoding"
found = [load_native(name) for name in ("jpeg_codes", "resample")]
found.append(native.load_library(decoding, "few_rows", ""))
print(all(library is not None for library in found))
"""


class Check(NamedTuple):
    """One finding; `fix` says what to do unless status is ok."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    fix: str = ""


def add_commands(subparsers: argparse._SubParsersAction) -> None:
    """Add `gear-dist doctor`."""
    parser = subparsers.add_parser(
        "doctor",
        help="check this machine: versions, devices, memory, disk, object store",
        description="Check whether this machine is ready for training. Exit code 0 if nothing "
        "failed, else 2.",
    )
    parser.add_argument("--store", default="", help="corpus address to reach, s3://... or a path")
    parser.add_argument("--endpoint", default="", help="S3 endpoint, such as http://127.0.0.1:9000")
    parser.add_argument(
        "--root",
        type=path_argument,
        default="runs",
        help="run folder root whose free disk space is checked",
    )
    parser.add_argument(
        "--config",
        type=path_argument,
        metavar="CONFIG",
        help="run file whose text encoder is counted: parameters, memory, arithmetic",
    )
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")
    parser.set_defaults(run=run_doctor)


def run_doctor(args: argparse.Namespace) -> int:
    """Print every check as it is made; 2 if one failed."""
    checks = []
    options = {"store": args.store, "endpoint": args.endpoint, "root": args.root}
    for check in run_checks(**options, config=args.config):
        checks.append(check)
        if not args.json:
            print(format_check(check), flush=True)
    failed = [check.name for check in checks if check.status == "fail"]
    if args.json:
        print(json.dumps({"ok": not failed, "checks": [check._asdict() for check in checks]}))
    else:
        warned = sum(check.status == "warn" for check in checks)
        print(f"{len(checks)} checks: {len(failed)} failed, {warned} with a warning")
    return _EXIT_FAILED if failed else 0


def format_check(check: Check) -> str:
    """One or two lines: the finding, and the fix where there is one."""
    mark = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}[check.status]
    line = f"{mark}  {check.name:<15} {check.detail}"
    return f"{line}\n{'':<22}fix: {check.fix}" if check.fix else line


def run_checks(
    *,
    store: str = "",
    endpoint: str = "",
    root: Path = Path("runs"),
    config: Path | None = None,
) -> Iterator[Check]:
    """Make all checks, cheap ones first; those of a store and of a run only where they are named.

    Raises:
        ConfigError: the run file is missing or wrong.
    """
    yield check_python()
    yield from check_packages()
    yield check_machine()
    yield check_shared_memory()
    yield check_disk(root)
    yield check_open_files()
    yield check_devices()
    yield check_compiler(needed=gpu_driver() is not None)
    yield check_native()
    for package in ("triton", "deepspeed", "ray"):
        yield check_import(package)
    if config is not None:
        yield check_text_encoder(config, on_cuda=gpu_driver() is not None)
    if endpoint:
        yield check_endpoint(endpoint)
    if store:
        yield check_corpus_address(store, endpoint)


def check_python() -> Check:
    """Python's version."""
    ok = sys.version_info >= (3, 11)
    fix = "" if ok else "use Python 3.11 or newer"
    return Check("python", "ok" if ok else "fail", platform.python_version(), fix)


def check_packages(
    requirements: list[str] | None = None,
    version: Callable[[str], str] = importlib.metadata.version,
) -> Iterator[Check]:
    """Installed versions against the package's own requirements: one check, or one a misfit.

    Args:
        requirements: PEP 508 lines; None: those of the installed gear-dist.
        version: gives a package's version or raises PackageNotFoundError.
    """
    if requirements is None:
        try:
            requirements = importlib.metadata.requires("gear-dist") or []
        except importlib.metadata.PackageNotFoundError:
            yield Check("packages", "warn", "gear-dist is not installed", "pip install -e .")
            return
    count = 0
    for item in map(Requirement, requirements):
        if item.marker is not None and not item.marker.evaluate({"extra": ""}):
            continue
        count += 1
        fix = f"pip install '{item}'"
        try:
            found = version(item.name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(item.name, "fail", f"not installed; {item} is needed", fix)
            continue
        if not item.specifier.contains(found, prereleases=True):
            yield Check(item.name, "fail", f"{found}; tested with {item.specifier}", fix)
    yield Check("packages", "ok", f"{count} requirements of gear-dist compared")


def check_devices() -> Check:
    """Whether torch works, and what it sees."""
    output, error = _run_python(_DEVICES_PROGRAM)
    if output is None:
        fix = "reinstall torch: pip install --force-reinstall torch"
        return Check("torch", "fail", f"does not import: {error}", fix)
    info = json.loads(output)
    driver = gpu_driver()
    if info["devices"]:
        names = ", ".join(
            f"{name} ({format_bytes(free)} of {format_bytes(total)} free)"
            for name, (free, total) in info["devices"]
        )
        detail = f"{info['version']}, CUDA {info['cuda']}, driver {driver}: {names}"
        return Check("torch", "ok", detail)
    problem, fix = unseen_gpu(info["cuda"], driver, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if problem:
        return Check("torch", "warn", f"{info['version']}: {problem}", fix)
    return Check("torch", "ok", f"{info['version']}, no GPU: runs use the CPU")


def check_import(package: str) -> Check:
    """Whether a package imports."""
    program = f"import {package}; print('version:', {package}.__version__)"
    output, error = _run_python(program)
    if output is None:
        fix = f"pip install --force-reinstall {package}"
        return Check(package, "fail", f"does not import: {error}", fix)
    return Check(package, "ok", output.rpartition("version:")[2].strip())


def check_compiler(needed: bool) -> Check:
    """A C++ compiler, which Triton needs on CUDA and DeepSpeed for its optional operators."""
    for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        path = shutil.which(name) if name else None
        if path:
            return Check("compiler", "ok", path)
    status: Literal["warn", "fail"] = "fail" if needed else "warn"
    return Check("compiler", status, "no C++ compiler found", "apt-get install g++")


def check_native() -> Check:
    """Whether the C files were compiled when the package was installed."""
    output, error = _run_python(_NATIVE_PROGRAM)
    if output == "True":
        return Check("native", "ok", "the C code is compiled")
    detail = error or (
        "gear-dist was installed without its C code: sharding and sampling on the CPU are slower, "
        "and shard finds less damage"
    )
    return Check("native", "warn", detail, "install g++, then gear-dist again")


def check_machine() -> Check:
    """Processor and memory."""
    total, available = memory_bytes()
    detail = (
        f"{num_cores()} cores ({cpu_model()}), memory {format_bytes(available)} of "
        f"{format_bytes(total)} free"
    )
    if total and available < 2 * _GIB:
        return Check("machine", "fail", detail, "close programs: two workers need about 4 GiB")
    if total and available < 6 * _GIB:
        return Check(
            "machine", "warn", detail, "use run.workers=1 or a smaller engine.global_batch"
        )
    return Check("machine", "ok", detail)


def check_text_encoder(path: Path, *, on_cuda: bool) -> Check:
    """What the frozen text encoder of a run file takes of each worker.

    Raises:
        ConfigError: the run file is missing or wrong, or its text encoder is of another family.
    """
    from gear_dist.config.loading import load_config
    from gear_dist.planning.fake_models import fake_tensors, measure_encoder
    from gear_dist.planning.trace_step import CAPTION_TOKENS, caption_flops

    config = load_config(path, [])
    if not config.reads_captions:
        return Check("text encoder", "ok", f"{path} trains on no captions")
    with fake_tensors():
        size, note = measure_encoder(config)
    if not size.parameters:
        unknown = "unknown" in note
        fix = "give text_encoder.path a local folder, or connect to the hub" if unknown else ""
        return Check("text encoder", "warn" if unknown else "ok", note, fix)
    num_bytes = size.parameters * (2 if on_cuda else 4)
    detail = (
        f"{note}: {format_bytes(num_bytes)} of each worker in {'bf16' if on_cuda else 'fp32'}, "
        f"{caption_flops(size) / 1e9:,.0f} GFLOP a caption of {CAPTION_TOKENS} tokens"
    )
    if config.generator.text_rotary == "zeros":
        detail += "; generator.text_rotary=zeros: queries and keys of text positions are dead"
    available = memory_bytes()[1]
    if not on_cuda and available and num_bytes > available:
        fix = (
            "use a smaller text_encoder.path, or write the features elsewhere "
            "(gear-dist features) and train with data.caption_features"
        )
        return Check("text encoder", "fail", f"{detail}; {format_bytes(available)} are free", fix)
    return Check("text encoder", "ok", detail)


def check_shared_memory(path: Path = Path("/dev/shm")) -> Check:
    """Free shared memory, where Ray's object store and NCCL live."""
    if not path.is_dir():
        return Check("shared memory", "ok", f"no {path} on this system")
    free = shutil.disk_usage(path).free
    detail = f"{format_bytes(free)} free in {path}"
    if free >= 2 * _GIB:
        return Check("shared memory", "ok", detail)
    fix = "in a container: docker run --shm-size=8g, or an emptyDir with medium: Memory"
    return Check("shared memory", "fail" if free < _GIB // 8 else "warn", detail, fix)


def check_disk(root: Path) -> Check:
    """Free disk where run folders go."""
    place = next(p for p in (root.absolute(), *root.absolute().parents) if p.exists())
    if not place.is_dir():
        fix = "set run.root to another folder"
        return Check("disk", "fail", f"{place} is a file, where {root} wants a folder", fix)
    if not os.access(place, os.W_OK):
        return Check("disk", "fail", f"{place} is not writable", "set run.root to another folder")
    free = shutil.disk_usage(place).free
    detail = f"{format_bytes(free)} free for {root}"
    fix = "free space, or set run.root to a folder on another disk"
    if free < 2 * _GIB:
        return Check("disk", "fail", detail, fix)
    return Check("disk", "warn", detail, fix) if free < 10 * _GIB else Check("disk", "ok", detail)


def check_open_files() -> Check:
    """The limit of open files, which Ray's processes reach first."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail = f"{soft} (at most {hard})"
    if soft == resource.RLIM_INFINITY or soft >= 4096:
        return Check("open files", "ok", detail)
    return Check("open files", "warn", detail, "ulimit -n 65536 before `gear-dist train`")


def check_endpoint(endpoint: str) -> Check:
    """Whether something listens at the S3 endpoint."""
    shown = redact_text(endpoint)
    try:
        parts = urllib.parse.urlsplit(endpoint)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        parts, port = urllib.parse.SplitResult("", "", "", "", ""), 0
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return Check("endpoint", "fail", f"{shown} is not an address", "give http://HOST:PORT")
    try:
        with socket.create_connection((parts.hostname, port), timeout=5):
            return Check("endpoint", "ok", f"{shown} answers")
    except OSError as error:
        fix = "start the store, or correct data.endpoint"
        return Check("endpoint", "fail", f"{shown}: {error.strerror or error}", fix)


def check_corpus_address(address: str, endpoint: str) -> Check:
    """Whether the corpus at an address can be listed and is published."""
    from gear_dist.data.manifest import load_manifest
    from gear_dist.storage.open import open_storage

    shown = redact_text(address)
    try:
        storage = open_storage(address, endpoint)
        found = next(iter(storage.list()), None)
        if found is None:
            fix = f"gear-dist shard SOURCE {shown}"
            return Check("store", "warn", f"{shown} is reachable and empty", fix)
        info = load_manifest(storage).info
    except UserError as error:
        fix = (
            "correct --endpoint or the AWS_* variables" if "s3://" in address else "correct --store"
        )
        return Check("store", "fail", str(error), fix)
    return Check("store", "ok", f"{shown}: {info.num_samples} images, {info.num_shards} shards")


def _run_python(program: str) -> tuple[str | None, str]:
    """Standard output of a child that runs `program`, or None and why not."""
    command = [sys.executable, "-c", program]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_IMPORT_SECONDS)
    except subprocess.TimeoutExpired:
        return None, f"no answer within {_IMPORT_SECONDS} s"
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines()
        return None, lines[-1] if lines else f"ended with code {result.returncode}"
    return result.stdout.strip().splitlines()[-1], ""
