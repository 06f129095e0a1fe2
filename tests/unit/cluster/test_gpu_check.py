"""The check of a GPU: what passed is kept, what failed is said, what hangs is ended."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).parents[3] / "cluster/bench/gpu_check"
SCRIPTS = (
    "run",
    "steps",
    "verdict",
    "step_cost",
    "materials",
    "one_process",
    "kernel_tests",
    "resume",
)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a script of the folder as it imports its neighbours."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name: str) -> Any:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in SCRIPTS:
        sys.modules.pop(name, None)


@pytest.fixture
def check(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the check with steps of these names and programs."""
    steps, run = script("steps"), script("run")
    monkeypatch.setattr(run, "ROOT", tmp_path)

    def check(programs: dict[str, str], *words: str) -> tuple[int, str]:
        made = tuple(
            steps.Step(
                name,
                f"about {name}",
                2,
                lambda place, program=program: [sys.executable, "-c", program, str(place.result)],
            )
            for name, program in programs.items()
        )
        monkeypatch.setattr(run, "STEPS", made)
        output = tmp_path / "page.md"
        monkeypatch.setattr(
            sys, "argv", ["run.py", "--device", "cpu", "--output", str(output), *words]
        )
        return run.main(), output.read_text() if output.exists() else ""

    return check


def counting(tmp_path: Path, name: str, after: str = "") -> str:
    """A program that leaves a mark each time it runs."""
    return f"open({str(tmp_path / name)!r}, 'a').write('x'); {after}"


def test_what_passed_is_not_run_again(check: Any, tmp_path: Path) -> None:
    good, bad = counting(tmp_path, "a"), counting(tmp_path, "b", "raise SystemExit(3)")
    code, page = check({"first": good, "second": bad})
    assert code == 1
    assert "| first | passed |" in page
    assert "| second | FAILED |" in page
    assert "ended with code 3" in page
    code, page = check({"first": good, "second": counting(tmp_path, "b")})
    assert (code, "FAILED" in page) == (0, False)
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("x", "xx")
    check({"first": good, "second": good}, "first")
    assert (tmp_path / "a").read_text() == "xx"


def test_nothing_is_run_where_what_all_need_fails(tmp_path: Path) -> None:
    """As without a GPU: no step is wasted on it, and no page says that all failed."""
    words = [sys.executable, str(FOLDER / "run.py"), "--output", str(tmp_path / "page.md")]
    words += ["--scratch", str(tmp_path / "scratch")]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "torch sees no CUDA device" in done.stdout
    assert "[2/" not in done.stdout
    assert not (tmp_path / "page.md").exists()
    unknown = subprocess.run([*words, "nope"], capture_output=True, text=True)
    assert unknown.returncode == 2
    assert "no step nope: use some of versions" in unknown.stderr


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_an_interrupted_check_leaves_no_step_behind(tmp_path: Path, ending: signal.Signals) -> None:
    words = [sys.executable, str(FOLDER / "run.py"), "--device", "cpu"]
    words += ["--scratch", str(tmp_path), "--output", str(tmp_path / "page.md"), "kernel-bench"]
    check = subprocess.Popen(words, start_new_session=True, stderr=subprocess.DEVNULL)
    while not (children := psutil.Process(check.pid).children()):
        time.sleep(0.02)
    check.send_signal(ending)
    assert check.wait(30) != 0
    _, alive = psutil.wait_procs(children, 30)
    assert alive == []


def test_what_passed_with_other_sources_or_another_device_is_run_again(
    check: Any, script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = {"first": counting(tmp_path, "a")}
    scratch = ("--scratch", str(tmp_path / "scratch"))
    check(programs, *scratch)
    source = tmp_path / "gear_dist/new.py"
    source.parent.mkdir()
    source.write_text("x = 1")
    check(programs, *scratch)
    assert (tmp_path / "a").read_text() == "xx"
    check(programs, *scratch, "--device", "cuda")
    assert (tmp_path / "a").read_text() == "xxx"
    monkeypatch.setattr(sys.modules["run"], "_gpus", lambda: "another card")
    check(programs, *scratch, "--device", "cuda")
    assert (tmp_path / "a").read_text() == "xxxx"
    (tmp_path / "page.md").unlink()
    code, page = check(programs, *scratch, "--device", "cuda")
    assert ((tmp_path / "a").read_text(), code) == ("xxxx", 0)
    assert "| first | passed |" in page
    (tmp_path / "scratch/state.json").write_text("{")
    check(programs, *scratch, "--device", "cuda")
    assert (tmp_path / "a").read_text() == "xxxxx"


def test_a_place_that_cannot_be_written_is_told_first(check: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="--scratch"):
        check({"first": counting(tmp_path, "a")}, "--scratch", str(tmp_path / "file"))
    assert not (tmp_path / "a").exists()


def test_what_all_need_comes_before_a_step_that_was_asked_for(
    check: Any, script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = {"base": counting(tmp_path, "a", "raise SystemExit(1)"), "next": ""}
    step = sys.modules["steps"].Step
    monkeypatch.setattr(
        sys.modules["steps"],
        "Step",
        lambda *values: step(*values, needed=values[0] == "base"),
    )
    code, page = check(programs, "next")
    assert (code, page, (tmp_path / "a").read_text()) == (1, "", "x")


@pytest.mark.parametrize(
    ("code", "counts", "problems"),
    [
        (0, 'tests="3" skipped="0"', ()),
        (0, 'tests="3" skipped="3"', ("3 skipped",)),
        (5, 'tests="0" skipped="0"', ("pytest ended with code 5", "no test was run")),
        (1, 'tests="3" failures="1"', ("pytest ended with code 1", "1 failures")),
    ],
)
def test_kernel_tests_that_did_not_run_did_not_pass(
    script: Any, tmp_path: Path, code: int, counts: str, problems: tuple[str, ...]
) -> None:
    script("verdict")
    report = tmp_path / "report.xml"
    report.write_text(f"<testsuites><testsuite {counts}/></testsuites>")
    assert script("kernel_tests").judge(code, report).problems == problems
    assert script("kernel_tests").judge(code, tmp_path / "none.xml").problems != ()


def test_weights_of_one_side_alone_differ(script: Any, tmp_path: Path) -> None:
    for name in ("verdict", "materials", "one_process"):
        script(name)
    resume = script("resume")
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    with pytest.raises(ValueError, match="no weights"):
        resume.differing(first, second)
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, first / "net.safetensors")
    save_file({"a": torch.ones(1)}, second / "net.safetensors")
    assert resume.differing(first, second) == ["net.b"]
    assert resume.differing(second, first) == ["net.b"]
    save_file({"a": torch.zeros(1), "b": torch.ones(1)}, second / "net.safetensors")
    assert resume.differing(first, second) == ["net.a"]


def test_a_step_that_hangs_is_ended_with_all_that_it_started(check: Any) -> None:
    hangs = "import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)"
    code, page = check({"hangs": hangs, "next": ""})
    assert code == 1
    assert "not done within 2 s" in page
    assert "| next | passed |" in page


def test_a_steps_own_problems_and_table_are_shown(check: Any) -> None:
    found = json.dumps({"problems": ["7 tensors differ"], "lines": ["| a | b |"]})
    program = f"import sys; open(sys.argv[1], 'w').write({found!r}); sys.exit(1)"
    code, page = check({"told": program})
    assert code == 1
    assert "7 tensors differ" in page
    assert "| a | b |" in page


def test_every_step_names_files_that_are_there(script: Any, tmp_path: Path) -> None:
    steps = script("steps")
    for device in ("cuda", "cpu"):
        place = steps.Place(device, tmp_path, tmp_path / "result.json")
        for step in steps.STEPS:
            words = step.command(place)
            named = [Path(w) for w in words if w.endswith((".py", ".yaml"))]
            assert all((steps.ROOT / path).is_file() for path in named), (step.name, words)


def test_launches_and_waits_are_read_from_a_trace(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch's profiler names them on CUDA, where the trace ends with a wait of its own."""
    step_cost = script("step_cost")
    monkeypatch.setattr(step_cost.torch.cuda, "is_available", lambda: True)
    trace = [
        SimpleNamespace(key="cudaLaunchKernel", count=608, self_device_time_total=0.0),
        SimpleNamespace(key="cuLaunchKernelEx", count=12, self_device_time_total=0.0),
        SimpleNamespace(key="cudaStreamSynchronize", count=2, self_device_time_total=0.0),
        SimpleNamespace(key="cudaDeviceSynchronize", count=1, self_device_time_total=0.0),
        SimpleNamespace(key="aten::mm", count=9, self_device_time_total=1500.0),
    ]
    launches, waits, slowest = step_cost._read(trace)
    assert (launches, waits, slowest[0]) == (620, 2, ("aten::mm", 1.5))


@pytest.mark.slow
def test_the_whole_check_passes_without_a_gpu(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the demonstration, which `make train` is."""
    run = script("run")
    names = [step.name for step in run.STEPS if step.name != "train"]
    output = tmp_path / "page.md"
    words = ["run.py", *names, "--device", "cpu", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", words)
    run.main()
    page = output.read_text()
    assert page.count("| passed |") >= len(names), page
    assert "FAILED" not in page
