"""The decoding engine: equal to the training module, for every batch, schedule and layout."""

import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gear_dist.config.models import GeneratorConfig, SamplingConfig
from gear_dist.errors import ConfigError, NumericError
from gear_dist.inference.decoding import engine as engine_module
from gear_dist.inference.decoding.engine import DecodingEngine
from gear_dist.inference.decoding.guidance import count_guided, guidance_scales
from gear_dist.inference.decoding.native import FewRows, load_few_rows, pack
from gear_dist.inference.decoding.torch_step import BUCKET, TorchStep
from gear_dist.inference.decoding.weights import pack_weights
from gear_dist.inference.draws import Filters, draw_codes
from gear_dist.inference.seeds import token_uniforms
from gear_dist.models.generator import ClassCondition
from gear_dist.models.generator.transformer import Generator
from refusals import refused

CPU = torch.device("cpu")
NUM_CODES, SIDE, NUM_CLASSES = 37, 4, 5


def make_generator(*, side=SIDE, **changes) -> Generator:
    torch.manual_seed(0)
    sizes = {"width": 48, "num_layers": 2, "num_heads": 3, "num_classes": NUM_CLASSES}
    config = GeneratorConfig(**sizes, tap_layer=1, **changes)
    generator = Generator(config, num_codes=NUM_CODES, grid_size=side, kernels="torch")
    torch.nn.init.normal_(generator.output.weight, std=0.3)
    for block in generator.layers:
        torch.nn.init.normal_(block.attention.wqkv.weight, std=0.2)
    return generator.eval()


def classes(count: int) -> ClassCondition:
    return ClassCondition(torch.arange(count) % NUM_CLASSES)


def batched(values, size):
    return [values[i : i + size] for i in range(0, len(values), size)]


def decode(generator, condition, seeds, sampling):
    return torch.cat([*DecodingEngine(generator).generate(condition, seeds, sampling)])


@pytest.fixture(params=["native", "torch"])
def layout(request, monkeypatch):
    """Both ways to compute in fp32 on the CPU."""
    if request.param == "torch":
        monkeypatch.setattr(engine_module, "load_few_rows", lambda: None)
    return request.param


def plain_loop(generator, condition, seeds, sampling):
    """Whole forward passes of the training module, token by token, without a cache."""
    null = condition._replace(labels_B=torch.full_like(condition.labels_B, NUM_CLASSES))
    length = generator.num_tokens
    scales = guidance_scales(sampling, length)
    uniforms = torch.from_numpy(token_uniforms(seeds, length))
    tokens = torch.zeros(condition.num_images, 0, dtype=torch.long)
    for t in range(length):
        logits = generator.logits(tokens, condition)[:, -1]
        unconditional = generator.logits(tokens, null)[:, -1]
        guided = unconditional + scales[t] * (logits - unconditional)
        codes = draw_codes(guided, uniforms[:, t], Filters.of(sampling, CPU))
        tokens = torch.cat([tokens, codes[:, None]], dim=1)
    return tokens


SCHEDULES = [
    {"guidance": 1.0},
    {"guidance": 2.5},
    {"guidance": 0.0},
    {"guidance": 3.0, "guidance_schedule": "interval", "guidance_start": 0.2, "guidance_end": 0.6},
    {"guidance": 3.0, "guidance_schedule": "linear"},
    {"guidance": 3.0, "guidance_schedule": "cosine", "guidance_end": 0.5},
]


@pytest.mark.parametrize("settings", SCHEDULES, ids=str)
def test_tokens_are_those_of_whole_passes(layout, settings):
    """Cache, halves, fused products and schedules change nothing; a draw is far from a boundary by
    more than rounding but once in a million."""
    generator = make_generator()
    sampling = SamplingConfig(**settings, temperature=1.3, top_k=20)
    wanted = plain_loop(generator, classes(3), [4, 5, 6], sampling)
    assert torch.equal(decode(generator, classes(3), [4, 5, 6], sampling), wanted)
    assert wanted.unique().numel() > 5


@pytest.mark.parametrize("num_heads", [1, 3, 6])
def test_heads_of_any_width(num_heads):
    """48, 16 and 8 wide: more and less than the native code's vectors."""
    torch.manual_seed(1)
    config = GeneratorConfig(
        width=48, num_layers=1, num_heads=num_heads, num_classes=NUM_CLASSES, tap_layer=1
    )
    generator = Generator(config, num_codes=NUM_CODES, grid_size=SIDE, kernels="torch").eval()
    torch.nn.init.normal_(generator.output.weight, std=0.5)
    sampling = SamplingConfig(guidance=1.5)
    wanted = plain_loop(generator, classes(2), [1, 2], sampling)
    assert torch.equal(decode(generator, classes(2), [1, 2], sampling), wanted)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_sample_depends_on_no_other_sample(layout, threads):
    """Equal tokens for batches of 1, 7 and 64, in any order, and for any number of threads."""
    generator = make_generator()
    count = {"native": 64, "torch": 14}[layout]
    labels, seeds = classes(count).labels_B, list(range(100, 100 + count))
    base = {"guidance": 2.0, "guidance_schedule": "interval", "guidance_end": 0.5}
    kept = torch.get_num_threads()
    whole = decode(generator, ClassCondition(labels), seeds, SamplingConfig(**base))
    try:
        torch.set_num_threads(threads)
        for size in (1, 7):
            # As many calls; in torch operations each fills its tile up with others.
            parts = zip(ClassCondition(labels).split(size), batched(seeds, size), strict=True)
            found = [decode(generator, *part, SamplingConfig(**base)) for part in parts]
            assert torch.equal(torch.cat(found), whole)
        found = decode(generator, ClassCondition(labels), seeds, SamplingConfig(**base, batch=5))
        assert layout == "torch" or torch.equal(found, whole)
    finally:
        torch.set_num_threads(kept)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    shuffled = decode(
        generator, ClassCondition(labels[order]), [seeds[i] for i in order], SamplingConfig(**base)
    )
    assert torch.equal(shuffled, whole[order])


def test_fixed_batches_fill_up():
    generator = make_generator()
    sampling = SamplingConfig(guidance=2.0, dtype="bf16", batch=4, fixed_batches=True)
    whole = decode(generator, classes(6), range(6), sampling)
    for i in range(6):
        alone = decode(
            make_generator(), ClassCondition(classes(6).labels_B[i : i + 1]), [i], sampling
        )
        assert torch.equal(alone[0], whole[i])


def test_schedules_by_their_formulas():
    """Eleven tokens: token t is at the place t / 10."""

    def scales(**settings):
        return guidance_scales(SamplingConfig(guidance=3.0, **settings), 11)

    def ramp(low, high):
        return [min(1.0, max(0.0, (t / 10 - low) / (high - low))) for t in range(11)]

    assert scales() == [3.0] * 11
    inside = scales(guidance_schedule="interval", guidance_start=0.3, guidance_end=0.7)
    assert inside == [1.0] * 3 + [3.0] * 5 + [1.0] * 3
    assert count_guided(inside) == 8
    linear = scales(guidance_schedule="linear")
    assert linear == pytest.approx([1 + 2 * t / 10 for t in range(11)])
    late = scales(guidance_schedule="linear", guidance_start=0.5)
    assert late == pytest.approx([1 + 2 * y for y in ramp(0.5, 1)])
    cosine = scales(guidance_schedule="cosine", guidance_end=0.5)
    assert cosine == pytest.approx([1 + (1 - math.cos(math.pi * y)) for y in ramp(0, 0.5)])
    assert count_guided(guidance_scales(SamplingConfig(guidance=1.0), 11)) == 0
    assert guidance_scales(SamplingConfig(guidance=3.0, guidance_schedule="linear"), 1) == [1.0]


REFUSED = [
    ({"guidance_start": 0.2}, ("sampling.guidance_schedule=constant", "guidance_start=0.2")),
    (
        {"guidance_schedule": "linear", "guidance_start": 0.6, "guidance_end": 0.5},
        ("sampling.guidance_start=0.6", "sampling.guidance_end=0.5"),
    ),
    ({"temperature": -1.0}, ("sampling.temperature=-1.0", 0)),
    ({"guidance": -0.5}, ("sampling.guidance=-0.5",)),
    ({"top_k": -1}, ("sampling.top_k=-1",)),
    ({"top_p": 0.0}, ("sampling.top_p=0.0",)),
    ({"min_p": 1.5}, ("sampling.min_p=1.5",)),
    ({"batch": 0}, ("sampling.batch=0",)),
]


@pytest.mark.parametrize(("settings", "needles"), REFUSED, ids=str)
def test_impossible_settings_are_refused(settings, needles):
    with refused(ConfigError, *needles):
        SamplingConfig(**settings)


def test_what_a_generator_cannot_do_is_refused():
    engine = DecodingEngine(make_generator())

    def sample(condition, seeds=(0,), **settings):
        return list(engine.generate(condition, seeds, SamplingConfig(**settings)))

    with refused(ConfigError, f"sampling.top_k={NUM_CODES + 1}", NUM_CODES):
        sample(classes(1), top_k=NUM_CODES + 1)
    for label in (-1, NUM_CLASSES):
        with refused(ConfigError, label, NUM_CLASSES - 1):
            sample(ClassCondition(torch.tensor([label])))
    with refused(ConfigError, 2**64, 2**64 - 1):
        sample(classes(1), seeds=[2**64])
    with refused(ConfigError, "sampling.cache_dtype=fp8", "cpu"):
        sample(classes(1), cache_dtype="fp8")
    sample(classes(1))
    with refused(ConfigError, "sampling.dtype=bf16"):
        sample(classes(1), dtype="bf16")


def test_logits_that_are_not_finite_are_told(layout):
    generator = make_generator()
    generator.output.weight.data[3, 5] = torch.nan
    with refused(NumericError, "finite"):
        decode(generator, classes(1), [0], SamplingConfig(guidance=1.0))


def make_step(generator: Generator, **how) -> TorchStep:
    step = TorchStep(
        pack_weights(generator, torch.float32), batch=2, rows=4, prefix_positions=1, **how
    )
    prefix = generator.read_condition(classes(2).with_null(generator.config))
    uniforms = torch.from_numpy(token_uniforms([1, 2], generator.num_tokens).T)
    sampling = SamplingConfig(guidance=2.0, top_k=9, top_p=0.9, min_p=0.01, temperature=0.9)
    step.begin(prefix, uniforms, [2.0] * generator.num_tokens, Filters.of(sampling, CPU))
    return step


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@torch.no_grad()
def test_the_step_is_one_graph(backend):
    """What CUDA graphs capture: no graph break, one graph a bucket, the same tokens as eager."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    generator = make_generator()
    eager, compiled = make_step(generator), make_step(generator, compile_backend=backend)
    for token in range(1, generator.num_tokens):
        # The null halves end early, as under an interval.
        eager.advance(token, guided=token < 10)
        compiled.advance(token, guided=token < 10)
    assert torch.equal(eager.result(), compiled.result())
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs == 2, "one with null halves, one without: all tokens are in the first bucket"


@torch.no_grad()
def test_buckets_and_batches_may_take_any_number_of_graphs():
    """torch allows eight of a function by default, those of all its objects together."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    generator = make_generator(side=12)
    for _ in range(3):
        step = make_step(generator, compile_backend="eager")
        for token in (1, BUCKET, 2 * BUCKET):
            step.advance(token, guided=True)
            step.advance(token, guided=False)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 18


@torch.no_grad()
def test_nothing_is_waited_for_between_tokens():
    """No value goes from the device to the host, so launches run ahead of a GPU."""
    waits = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
                waits.append(func)
            return func(*args, **(kwargs or {}))

    generator = make_generator()
    step = make_step(generator)
    with Watch():
        for token in range(1, generator.num_tokens):
            step.advance(token, guided=True)
    assert waits == []


@torch.no_grad()
def test_deterministic_algorithms_are_enough():
    torch.use_deterministic_algorithms(True)
    try:
        generator = make_generator()
        step = make_step(generator)
        step.advance(1, guided=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert step.result().shape == (2, SIDE**2)


@torch.no_grad()
def test_an_fp8_cache_holds_what_fp8_holds():
    """CUDA only by setting; the arithmetic is the same here: keys and values rounded to e4m3."""
    generator = make_generator()
    step = make_step(generator, cache_dtype=torch.float8_e4m3fn)
    exact = make_step(generator)
    wanted = exact.keys[:, :, :, 0].to(torch.float8_e4m3fn).float()
    assert torch.equal(step.keys[:, :, :, 0].float(), wanted)
    step.advance(1, guided=True)
    assert step.all_finite()
    assert step.keys[:, :, :, 1].float().abs().sum() > 0


def test_bf16_is_near_fp32():
    """Logits in bf16 give mostly the same greedy tokens; fp32 is not kept somewhere by mistake."""
    greedy = {"guidance": 2.0, "temperature": 0}
    exact = decode(make_generator(), classes(5), range(5), SamplingConfig(**greedy))
    rounded = decode(make_generator(), classes(5), range(5), SamplingConfig(**greedy, dtype="bf16"))
    assert (exact[:, 0] == rounded[:, 0]).float().mean() > 0.5
    assert pack_weights(make_generator(), torch.bfloat16).layers[0].w13.dtype == torch.bfloat16


class TestFewRows:
    """few_rows.c against float64."""

    @pytest.fixture
    def library(self):
        library = load_few_rows()
        assert library is not None, "run make setup"
        return library

    @pytest.mark.parametrize(("inputs", "outputs"), [(48, 48), (33, 37), (128, 16)])
    def test_a_product_is_right_and_a_row_depends_on_no_other(self, library, inputs, outputs):
        random = torch.Generator().manual_seed(0)
        x = torch.randn(70, inputs, generator=random)
        w = torch.randn(outputs, inputs, generator=random)
        packed = pack(w)
        wanted = x.double() @ w.double().t()
        results = []
        for rows, threads in itertools.chain(
            ((r, 1) for r in (*range(1, 20), 48, 49, 70)), [(3, 2), (70, 5)]
        ):
            few = FewRows(library, rows, inputs, threads)
            y = torch.zeros(rows, packed.width)
            few.product(x[:rows].contiguous(), packed, y, add=False)
            few.product(x[:rows].contiguous(), packed, y, add=True)
            results.append(y)
        largest = max(results, key=len)
        error = (largest[:, :outputs] / 2 - wanted).abs().max()
        assert error <= 2e-6 * inputs**0.5 * wanted.abs().max()
        for y in results:
            assert torch.equal(y, largest[: len(y)])

    def test_norm_and_activation(self, library):
        few = FewRows(library, 3, 64, 1)
        x = torch.randn(3, 48, generator=torch.Generator().manual_seed(0)) * 20
        weight = torch.linspace(0.5, 2, 48)
        y = torch.empty(3, 48)
        few.norm(x, weight, y)
        x64 = x.double()
        wanted = x64 * torch.rsqrt(x64.square().mean(-1, keepdim=True) + 1e-5) * weight
        assert torch.allclose(y.double(), wanted, rtol=1e-5, atol=1e-7)
        gates = torch.cat([torch.linspace(-200, 90, 32), torch.randn(32)])[None].repeat(3, 1)
        hidden = torch.empty(3, 32)
        few.swiglu(gates, hidden)
        gate, up = gates.double().chunk(2, -1)
        wanted = gate * torch.sigmoid(gate) * up
        assert torch.allclose(hidden.double(), wanted, rtol=1e-5, atol=1e-30)
