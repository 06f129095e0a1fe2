"""What a run ran on: versions, hardware, code revision, command. No environment variables.

Nothing here imports torch unless `torch_devices` is called.
"""

import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gear_dist.redaction import redact_command
from gear_dist.source_tree import ROOT

PACKAGES = (
    "gear-dist",
    "torch",
    "deepspeed",
    "ray",
    "triton",
    "transformers",
    "webdataset",
    "pyarrow",
    "numpy",
)


def collect_environment(
    seed: int,
    settings: frozenset[str],
    extra: Mapping[str, Any],
    command: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The environment record of a run, for `RunFolder.write_environment`.

    Args:
        seed: the run's.
        settings: dotted names of all settings, whose values in the command are not secrets.
        extra: what the caller knows: kernel implementation, world size, precision, facts of the
            data manifest.
        command: the command line, program first (recorded as gear-dist); None: this process's.
            A worker's own says nothing: hand the driver's down.

    Returns:
        Plain data. `extra` has the last word where a name occurs twice.
    """
    command = sys.argv if command is None else command
    return {
        "versions": package_versions(),
        "python": platform.python_version(),
        "os": f"{platform.system()} {platform.release()} ({_distribution()})",
        "hardware": {
            "cpu": cpu_model(),
            "cores": num_cores(),
            "memory_bytes": memory_bytes()[0],
            "gpus": torch_devices(),
            "gpu_driver": gpu_driver(),
        },
        "git": git_state(),
        "seed": seed,
        "command": shlex.join(["gear-dist", *redact_command(command[1:], settings)]),
        **extra,
    }


def package_versions(names: Sequence[str] = PACKAGES) -> dict[str, str | None]:
    """Installed version of each package; None: not installed."""
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def cpu_model() -> str:
    """The processor's name."""
    for line in _lines(Path("/proc/cpuinfo")):
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def memory_bytes() -> tuple[int, int]:
    """Memory in all and available, in bytes, both within the container's limit; 0: unknown."""
    sizes = {}
    for line in _lines(Path("/proc/meminfo")):
        name, _, value = line.partition(":")
        sizes[name] = int(value.split()[0]) * 1024
    total, available = sizes.get("MemTotal", 0), sizes.get("MemAvailable", 0)
    limit = _number(Path("/sys/fs/cgroup/memory.max"))
    used = _number(Path("/sys/fs/cgroup/memory.current"))
    if 0 < limit < total:
        return limit, max(0, min(available, limit - used))
    return total, available


def torch_devices() -> list[dict[str, Any]]:
    """Visible CUDA devices: name, memory in bytes, compute capability. Imports torch."""
    import torch

    if not torch.cuda.is_available():
        return []
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [
        {
            "name": device.name,
            "memory_bytes": device.total_memory,
            "capability": f"{device.major}.{device.minor}",
        }
        for device in devices
    ]


def gpu_driver() -> str | None:
    """Version of the NVIDIA driver, "unknown" and why where it does not say; None: there is none.

    Tools of the driver may be installed where there is no GPU: what they fail at there is nothing.
    """
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        words = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
        said, ended_well = _first_words(words)
        if ended_well and _VERSION.match(said):
            return said
    elif (found := _VERSION_WITHIN.search(" ".join(_lines(_DRIVER_FILE)[:1]))) is not None:
        return found.group()
    else:
        said = "there is no nvidia-smi"
    return f"unknown ({said or 'nvidia-smi says nothing'})" if _driver_is_loaded() else None


_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_DEVICE_FILE = Path("/dev/nvidiactl")
_VERSION = re.compile(r"\d+(\.\d+)+$")
_VERSION_WITHIN = re.compile(r"\b\d{3}(\.\d+)+")


def _driver_is_loaded() -> bool:
    return _DRIVER_FILE.exists() or _DEVICE_FILE.exists()


def _first_words(command: list[str]) -> tuple[str, bool]:
    """The first line of what a command says, and whether it ended well."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return type(error).__name__, False
    return ((done.stdout.strip() or done.stderr.strip()).partition("\n")[0], done.returncode == 0)


DRIVERS = {12: "525", 13: "580"}
"""Oldest driver for each major version of CUDA that a torch wheel may be built for (NVIDIA, CUDA
Compatibility, minor version compatibility on Linux)."""


def unseen_gpu(cuda: str | None, driver: str | None, visible: str | None) -> tuple[str, str]:
    """Why torch sees no GPU of a machine that has a driver, and the fix; empty where that is meant.

    Args:
        cuda: version that torch is built for; None: it is built without.
        driver: see `gpu_driver`.
        visible: CUDA_VISIBLE_DEVICES; empty: none is to be seen.
    """
    if driver is None or visible in ("", "-1"):
        return "", ""
    if not _VERSION.match(driver):
        fix = "after an update of the driver restart the machine; else look at `nvidia-smi`"
        return f"torch sees no GPU, and the driver that is here does not answer: {driver}", fix
    if cuda is None:
        return f"torch is built without CUDA, and driver {driver} is here", "install torch for CUDA"
    needed = DRIVERS.get(int(cuda.partition(".")[0]), "")
    problem = f"torch is built for CUDA {cuda} and sees no GPU, and driver {driver} is here"
    fix = "look at CUDA_VISIBLE_DEVICES and the container's devices"
    if needed and int(driver.partition(".")[0]) < int(needed):
        fix = f"CUDA {cuda} needs driver {needed} or newer: update it, or install an older torch"
    return problem, fix


def git_state(root: Path = ROOT) -> dict[str, Any] | None:
    """Revision of a checkout, of the one that this package runs from; None: it is no checkout.

    Returns:
        {"revision": hash, "dirty": whether tracked or new files differ from it}.
    """
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    revision = _output([git, "-C", str(root), "rev-parse", "HEAD"])
    if not revision:
        return None
    changes = _output([git, "-C", str(root), "status", "--porcelain"])
    return {"revision": revision, "dirty": bool(changes)}


def _output(command: list[str]) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.strip()


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")
    except OSError:
        return "unknown"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _number(path: Path) -> int:
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else 0
