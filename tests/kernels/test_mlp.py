"""The fused MLP against float64, with both GELUs."""

from unittest import mock

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, NAMES, assert_as_exact

from kernels import mlp as module
from kernels.mlp import choose_mlp, fused_mlp

GELUS = ("none", "tanh")  # as F.gelu names them
NAMES_OF_GRADIENTS = ("d x", "d w1", "d b1", "d w2", "d b2")


def inputs(N, C, M, dtype=torch.float32, spread=1.0):
    """[x (N, C), w1 (M, C), b1 (M,), w2 (C, M), b2 (C,)]; `spread` is u's standard deviation."""
    torch.manual_seed(N + C + M)
    shapes, scales = ((N, C), (M, C), (M,), (C, M), (C,)), (1, spread / C**0.5, spread, M**-0.5, 1)
    return [
        (scale * torch.randn(shape, device=DEVICE)).to(dtype)
        for shape, scale in zip(shapes, scales, strict=True)
    ]


def passes(tensors, approximate, implementation, dtype):
    """[y, gradient of x, w1, b1, w2, b2], computed in `dtype`."""
    tensors = [tensor.to(dtype).detach().clone().requires_grad_() for tensor in tensors]
    y = fused_mlp(*tensors, approximate, implementation)
    torch.manual_seed(0)
    d_y = torch.randn(y.shape, device=DEVICE).to(torch.bfloat16).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, tensors, d_y)]


def check(tensors, approximate):
    dtype = tensors[0].dtype
    result = passes(tensors, approximate, "triton", dtype)
    torch_result = passes(tensors, approximate, "torch", dtype)
    exact = passes(tensors, approximate, "torch", torch.float64)
    for name, *values in zip(("y", *NAMES_OF_GRADIENTS), result, torch_result, exact, strict=True):
        assert values[0].dtype == dtype
        assert_as_exact(*values, name)


@pytest.mark.parametrize("approximate", GELUS)
@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
def test_error_is_torchs(dtype, approximate):
    check(inputs(150, 40, 160, dtype), approximate)


@pytest.mark.parametrize("approximate", GELUS)
@pytest.mark.parametrize(
    "N, C, M", [(1, 8, 8), (127, 8, 32), (129, 72, 288), (300, 128, 128), (1100, 16, 264)]
)
def test_any_size(N, C, M, approximate):
    """The last has more blocks of rows than a group of programs."""
    check(inputs(N, C, M, torch.bfloat16), approximate)


@pytest.mark.parametrize("approximate", GELUS)
@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
def test_gelu_and_its_derivative_everywhere(dtype, approximate):
    """u from -50 to 50: x W1^T is u itself, and W2 takes each g to a y of its own."""
    size = 16
    u = torch.linspace(-6, 6, 61 * size, device=DEVICE).view(61, size)
    u[0], u[1], u[2], u[3] = 50, -50, 0, -0.0
    one, zero = torch.eye(size, device=DEVICE), torch.zeros(size, device=DEVICE)
    tensors = [tensor.to(dtype) for tensor in (u, one, zero, one, zero)]
    check(tensors, approximate)
    y, d_x, *_ = passes(tensors, approximate, "triton", dtype)
    assert (y[0] == 50).all() and not y[1:4].any()
    assert not d_x[1].any()  # gelu'(-50) = 0


@pytest.mark.parametrize("approximate", GELUS)
def test_huge_values_stay_finite(approximate):
    """e^-2z is beyond float32, and of u of about +-1e12 u^3 is near its end."""
    check(inputs(100, 16, 64, torch.bfloat16, spread=1e4), approximate)
    check(inputs(100, 16, 64, torch.float32, spread=1e12), approximate)


def test_more_than_two_dimensions_and_other_layouts():
    x, w1, b1, w2, b2 = inputs(60, 16, 64)
    expected = passes((x, w1, b1, w2, b2), "tanh", "triton", torch.float32)[0]
    strided = torch.stack([b1, b1 + 1], -1)[:, 0]
    unaligned = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(3, 20, 16)
    turned = (unaligned, w1.T.contiguous().T, strided, w2.T.contiguous().T, b2)
    y = fused_mlp(*turned, "tanh", "triton")
    assert y.shape == (3, 20, 16)
    torch.testing.assert_close(y.view(60, 16), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("approximate", GELUS)
def test_without_gradients_the_result_is_the_same(approximate):
    tensors = inputs(150, 24, 96, torch.bfloat16)
    expected = passes(tensors, approximate, "triton", torch.bfloat16)[0]
    assert torch.equal(fused_mlp(*tensors, approximate, "triton"), expected)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    with torch.no_grad(), mock.patch.object(module, "launch", wraps=module.launch) as launched:
        assert torch.equal(fused_mlp(*leaves, approximate, "triton"), expected)
    assert not launched.call_args.kwargs["GRAD"]  # u is not written
    assert [t.numel() for t in module.triton_mlp(*tensors, True, False)] == [150 * 24, 0, 0]


def test_twice_is_the_same_and_every_element_is_written():
    torch.use_deterministic_algorithms(True, warn_only=True)  # what is not written to is nan
    try:
        args = (inputs(200, 24, 136, torch.bfloat16), "tanh", "triton", torch.bfloat16)
        for a, b in zip(passes(*args), passes(*args), strict=True):
            assert a.isfinite().all()
            assert torch.equal(a, b)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("implementation", ["triton", "torch"])
def test_autocast_decides_the_dtype(implementation):
    tensors = [tensor.requires_grad_() for tensor in inputs(100, 24, 96)]
    with torch.autocast(DEVICE, torch.bfloat16):
        y = fused_mlp(*tensors, "tanh", implementation)
    rounded = [tensor.detach().bfloat16().requires_grad_() for tensor in tensors]
    expected = fused_mlp(*rounded, "tanh", implementation)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)
    d_y = torch.randn_like(y)
    gradients = torch.autograd.grad(y, tensors, d_y)
    for a, b in zip(gradients, torch.autograd.grad(expected, rounded, d_y), strict=True):
        assert a.dtype == torch.float32  # as the weights
        assert torch.equal(a, b.float())


# ---- torch's side ------------------------------------------------------------------------------


def test_opcheck():
    tensors = [tensor.requires_grad_() for tensor in inputs(20, 16, 64)]
    torch.library.opcheck(module.triton_mlp, (*tensors, True, True))
    tensors = [tensor.detach() for tensor in tensors]
    torch.library.opcheck(module.triton_mlp, (*tensors, False, False))
    y, u, _ = module.triton_mlp(*tensors, True, True)
    torch.library.opcheck(module.triton_mlp_backward, (y, tensors[3], u, True))


def test_torch_compile_keeps_it_in_one_graph():
    tensors = [tensor.requires_grad_() for tensor in inputs(20, 16, 64)]
    compiled = torch.compile(fused_mlp, fullgraph=True, backend="aot_eager")
    results = []
    for function in (fused_mlp, compiled):
        with torch.autocast(DEVICE, torch.bfloat16):
            y = function(*tensors, "tanh", "triton")
        results.append([y.detach(), *torch.autograd.grad(y.float().square().sum(), tensors)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_what_is_chosen():
    x, w1 = torch.zeros(2, 24), torch.zeros(96, 24)
    assert choose_mlp(x, w1, "") == choose_mlp(x, w1, "torch") == "torch"
    assert choose_mlp(x, w1, "triton") == "triton"
    assert choose_mlp(x.double(), w1, "triton") == choose_mlp(x[:0], w1, "triton") == "torch"
    with pytest.raises(ValueError, match=r"one of .*'triton', 'torch'"):
        choose_mlp(x, w1, "cuda")


@pytest.mark.parametrize("N, C, M", [(9, 12, 48), (9, 16, 20), (0, 16, 64)])
def test_rows_that_descriptors_do_not_take_go_torchs_way(N, C, M):
    """24 and 40 bytes are no multiple of 16; and no rows at all."""
    args = (inputs(N, C, M, torch.bfloat16), "none")
    results = [
        passes(*args, implementation, torch.bfloat16) for implementation in ("triton", "torch")
    ]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
