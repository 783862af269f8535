"""What makes a step fast and leaves its values alone: one graph, no wait for the device, bf16, recomputation, SDPA."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import set_fused_attn, use_fused_attn
from timm.models.vision_transformer import Block
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models import SMALLEST, TINY, batch, build, gradients, needs_compiler, switched, told
from training.methods.crossmae import CrossMAE, CrossMAEConfig, with_variant
from training.methods.crossmae.diagnostics import diagnose
from training.methods.shared.blocks import CrossAttention, CrossBlock

KINDS = {
    "crossmae": SMALLEST,
    "cl-av": with_variant(SMALLEST, "cl-av"),
    "selfmae": with_variant(SMALLEST, "selfmae"),
    "ema": switched("embedding", targets="ema"),
    "every_block": switched("pixel", conditioning="every_block"),
    "tokens": switched("embedding", queries="tokens"),
    "feature": switched("embedding", normalise="feature"),
    "checkpointed": replace(SMALLEST, checkpoint_activations=True),
}

pytestmark = pytest.mark.usefixtures("one_thread")


BACKENDS = {  # one traces forward and backward; the others, which have nothing new to derive, forward alone
    "crossmae": "aot_eager",
    "cl-av": "eager",
    "selfmae": "eager",
    "ema": "eager",
    "every_block": "eager",
    "tokens": "eager",
    "feature": "eager",
    # torch 2.11 cannot recompute a whole norm within a graph; inductor splits norms first, as this one does.
    "checkpointed": "aot_eager_decomp_partition",
}


def assert_compiled_is_eager(config: CrossMAEConfig, **how: Any) -> None:
    """Losses and every gradient, in one graph."""
    eager, compiled = build(config), build(config)
    torch.compiler.reset()
    output = torch.compile(compiled, fullgraph=True, **how)(told(*batch()))
    output.loss.backward()
    expected = eager(told(*batch()))
    expected.loss.backward()
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(output.parts, expected.parts)
    torch.testing.assert_close(gradients(compiled), gradients(eager))


@pytest.mark.parametrize("kind", BACKENDS)
def test_forward_and_backward_compile_as_one_graph(kind: str) -> None:
    """No control flow on data, no graph break; only the tracing is ours, so the kernels stay eager."""
    config = replace(KINDS[kind], pixel=replace(KINDS[kind].pixel, depth=1))  # tracing takes seconds a layer
    assert_compiled_is_eager(config, backend=BACKENDS[kind])


class Waits(TorchDispatchMode):
    """Collects the calls for which the host would wait for a device: values read, shapes that depend on values, and,
    to a pretended GPU, copies that are not told to go on by themselves.
    """

    NAMES = frozenset(
        {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "_linalg_eigh"}
    )

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            i is not None and i.dtype == torch.bool for a in args if isinstance(a, (list, tuple)) for i in a
        )
        kwargs = kwargs or {}
        to = kwargs.get("device")
        is_upload = name == "_to_copy" and to is not None and to.type == "cuda" and args[0].device.type == "cpu"
        if name in self.NAMES or by_mask or (is_upload and not kwargs.get("non_blocking")):
            self.found.append(name)
        return func(*args, **kwargs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_never_waits_for_the_device(kind: str) -> None:
    model = build(KINDS[kind])
    with Waits() as waits:
        model(told(*batch())).loss.backward()
        model.update_teacher()
    assert waits.found == []
    with Waits() as waits:
        diagnose(model, told(*batch()))
    assert set(waits.found) <= {"_linalg_eigh"}  # of the effective rank: torch's own solver waits


@pytest.mark.parametrize("call", [lambda x: x[x > 0], lambda x: x.sum().item(), lambda x: bool(x.any())])
def test_waits_are_seen(call: Callable[..., object]) -> None:
    with Waits() as waits:
        call(torch.randn(3))
    assert waits.found


@pytest.mark.skipif(torch.__version__ < (2, 11), reason="torch 2.7 asks a real GPU for random numbers here")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "ema"])  # pretended weights cannot be copied
def test_every_tensor_is_made_on_the_device(kind: str) -> None:
    """On a pretended GPU: a mask or constant made on the CPU would not go together with the rest."""
    with FakeTensorMode():
        with torch.device("cuda"):
            model = CrossMAE(KINDS[kind])
        image, fbank, seeds = (x.to("cuda") for x in batch())
        with Waits() as waits:
            output = model(told(image, fbank, seeds))
        assert output.loss.device.type == "cuda" and output.loss.dtype == torch.float32 and waits.found == []
        with Waits() as waits:
            assert all(value.device.type == "cuda" for value in diagnose(model, told(image, fbank, seeds)).values())
        assert set(waits.found) <= {"_linalg_eigh"}


@pytest.mark.skipif(torch.__version__ < (2, 11), reason="torch 2.7 asks a real GPU for random numbers here")
def test_uploads_that_wait_are_seen() -> None:
    with FakeTensorMode(), Waits() as waits:
        torch.tensor(1.0, device="cuda")
        torch.zeros(3).to("cuda", non_blocking=True)
    assert waits.found == ["_to_copy"]


def test_compiled_under_autocast_it_is_one_graph() -> None:
    """As Accelerate runs it in bf16."""
    config = replace(SMALLEST, pixel=replace(SMALLEST.pixel, depth=1))
    eager, traced = build(config), build(config)
    torch.compiler.reset()
    with torch.autocast("cpu", torch.bfloat16):
        output = torch.compile(traced, backend="eager", fullgraph=True)(told(*batch()))
        torch.testing.assert_close(output.loss, eager(told(*batch())).loss)


@needs_compiler
def test_the_compiled_kernels_give_what_eager_ones_give() -> None:
    """Through inductor, as with --compile; without vector code, which takes g++ minutes."""
    config = replace(SMALLEST, encoder=replace(SMALLEST.encoder, depth=1), pixel=replace(SMALLEST.pixel, depth=1))
    assert_compiled_is_eager(config, options={"cpp.simdlen": 1})


def test_only_visible_tokens_are_encoded_and_targets_keep_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """[CLS] and a quarter of the patches with gradient; all of them once without; every attention through SDPA."""
    seen: list[tuple[int, int, bool]] = []  # queries, keys, whether a gradient is kept
    real = F.scaled_dot_product_attention

    def note(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **rest: Any) -> torch.Tensor:
        out = real(q, k, v, **rest)
        seen.append((q.shape[2], k.shape[2], out.requires_grad))
        return out

    monkeypatch.setattr(F, "scaled_dot_product_attention", note)
    build()(told(*batch()))
    encoders = [(50, 50, True)] * 2 + [(129, 129, True)] * 2  # two blocks each
    pixels = [(49, 32, True), *[(197, 197, True)] * 2, (128, 12, True), *[(513, 513, True)] * 2]
    targets = [(197, 197, False)] * 2 + [(513, 513, False)] * 2
    embeddings = [(196, 196, True), (196, 128, True), (512, 512, True), (512, 49, True)]
    assert seen == encoders + pixels + targets + embeddings


@pytest.mark.parametrize("kind", ["crossmae", "ema"])
def test_bf16_is_close_to_float32(kind: str) -> None:
    """bf16 keeps 8 bits, so a product is off by up to 2^-8 = 0.4%, at random: sums of hundreds are off by far less.

    What is left are the residual streams, rounded at each of a path's some ten layers: 2^-9 sqrt(10) is 0.6% of a
    feature, hence about twice that of a squared error's own part. 2% has room, and a part taken in bf16 as a whole (a
    softmax, a mean over 512 tokens) does not pass unseen: it would be off by 3% and more.
    """
    model = build(replace(TINY, embedding=replace(TINY.embedding, targets="ema" if kind == "ema" else "online")))
    exact = model(told(*batch(4)))
    with torch.autocast("cpu", torch.bfloat16):
        output = model(told(*batch(4)))
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    for name, part in output.parts.items():
        assert part.item() == pytest.approx(exact.parts[name].item(), rel=0.02), name
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert gradients(model).keys() == trained
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients(model).values())


def test_bf16_gradients_are_close_to_float32s() -> None:
    """Of each parameter of the decoders: float32 streams leave 1%; with a stream in bf16 a norm is off by half."""
    exact, low = build(TINY), build(TINY)
    exact(told(*batch(4))).loss.backward()
    with torch.autocast("cpu", torch.bfloat16):
        loss = low(told(*batch(4))).loss
    loss.backward()
    expected, found = gradients(exact), gradients(low)
    for name in (name for name in expected if "decoder" in name or "_from_" in name):
        error = (found[name] - expected[name]).norm() / expected[name].norm()
        assert error < 0.05, (name, error.item())


def test_residual_streams_are_float32_under_autocast() -> None:
    """What each block, cross-attention and norm is given, in the encoders and in the decoders of both levels."""
    streams: list[tuple[str, torch.dtype]] = []
    for conditioning in ("first", "every_block"):
        model = build(switched("pixel", conditioning=conditioning))
        for name, module in model.named_modules():
            if isinstance(module, (Block, CrossBlock, CrossAttention, torch.nn.LayerNorm)):
                module.register_forward_pre_hook(lambda _, args, name=name: streams.append((name, args[0].dtype)))
        with torch.autocast("cpu", torch.bfloat16):
            model(told(*batch()))
    assert len(streams) > 100 and [name for name, dtype in streams if dtype != torch.float32] == []


@pytest.mark.parametrize("kind", ["crossmae", "every_block"])
def test_recomputed_activations_change_no_bit(kind: str) -> None:
    def step(config: CrossMAEConfig) -> tuple[CrossMAE, torch.Tensor, int]:
        model = build(config)
        held = 0

        def note(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal held
            held += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = model(told(*batch())).loss
        loss.backward()
        return model, loss, held

    (plain, loss, held), (again, same, kept) = (
        step(replace(KINDS[kind], checkpoint_activations=recompute)) for recompute in (False, True)
    )
    assert torch.equal(loss, same)
    ours, theirs = gradients(plain), gradients(again)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert kept < held / 2


def test_the_targets_pass_is_never_recomputed() -> None:
    """Each block of the encoders runs three times: masked, masked again in the backward pass, and full view."""
    model = build(replace(SMALLEST, checkpoint_activations=True))
    lengths: list[int] = []
    model.image_encoder.blocks[0].register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    model(told(*batch())).loss.backward()
    assert sorted(lengths) == [50, 50, 197]


def test_timms_switch_turns_fused_attention_off_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """TIMM_FUSED_ATTN=0: faster with bf16 on a CPU (docs/performance.md), equal within rounding."""
    expected = build()(told(*batch()))
    was = use_fused_attn()
    set_fused_attn(False)
    try:
        model = build()
    finally:
        set_fused_attn(was)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("fused attention was used")

    monkeypatch.setattr(F, "scaled_dot_product_attention", refuse)
    torch.testing.assert_close(model(told(*batch())).parts, expected.parts)
