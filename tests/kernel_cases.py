"""What the tests of both kernel files share: where kernels run, and when their error is small."""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # on a CPU in Triton's interpreter
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in DTYPES}


def assert_as_exact(result, torch_result, exact, name="", largest=0.0):
    """The kernel's largest error against float64 is at most twice that of torch in the same dtype.

    torch's error counts as at least two roundings of the largest value: where torch happens to be
    exact, as at T = 1, a kernel may still round. In float32 on a CPU it is four: both sum as the
    processor's BLAS does there, and on one without AVX-512 the kernels were 5 and 6.8 roundings off
    where torch was 1.6 and 3. `largest`: an intermediate value, where one may be larger.
    """
    exact = exact.double()
    eps = torch.finfo(result.dtype).eps
    roundings = 4 if (DEVICE, result.dtype) == ("cpu", torch.float32) else 2
    floor = roundings * eps * max(exact.abs().max().item(), largest) + 1e-30
    kernel_error = (result.double() - exact).abs().max().item()
    torch_error = (torch_result.double() - exact).abs().max().item()
    assert kernel_error <= 2 * max(torch_error, floor), (
        name,
        kernel_error,
        torch_error,
    )  # nan fails
    assert result.isfinite().all(), name
