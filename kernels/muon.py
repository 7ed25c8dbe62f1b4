"""
Muon: momentum made orthogonal, for the matrices inside a network (Jordan et al. 2024).

    M <- mu M + (1 - mu) G                                   momentum of the gradient
    W <- (1 - lr wd) W - lr 0.2 sqrt(max(m, n)) orthogonal(mu M + (1 - mu) G)

orthogonal(U S V^T) = U V^T: every direction of the matrix moves equally far, where the gradient has
a few large directions and many small ones. The factor 0.2 sqrt(max(m, n)) gives the update AdamW's
usual size, so that AdamW's learning rates and weight decay carry over (Liu et al. 2025, eq. 4).

torch.optim.Muon is the same but always iterates in bfloat16, which most CPUs have to emulate.
"""

import torch


class Muon(torch.optim.Optimizer):
    """params: 2-D weights. lr and weight_decay as AdamW's; momentum: mu above."""

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                average = state.setdefault("momentum", torch.zeros_like(weight))
                average.lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonal(weight.grad.lerp(average, group["momentum"]))  # Nesterov's
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * 0.2 * max(weight.shape) ** 0.5)


def orthogonal(matrix, steps=5):
    """
    The matrix with its singular values brought near 1, by Newton-Schulz iteration; (m, n) float.

    The quintic's coefficients are Jordan's: steepest at zero, so that small singular values grow
    quickly, at the price of ending somewhere in 0.7..1.2.
    """
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x.bfloat16() if x.is_cuda else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).type_as(matrix)
