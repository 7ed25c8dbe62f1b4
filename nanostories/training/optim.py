"""
Muon: momentum made orthogonal, for the matrices inside a network (Jordan et al. 2024).

    M <- mu M + (1 - mu) G                                   momentum of the gradient
    W <- (1 - lr wd) W - lr 0.2 sqrt(max(m, n)) orthogonal(mu M + (1 - mu) G)

orthogonal(U S V^T) = U V^T: every direction of the matrix moves equally far, where the gradient has
a few large directions and many small ones. The factor 0.2 sqrt(max(m, n)) gives the update AdamW's
usual size, so that AdamW's learning rates and weight decay carry over (Liu et al. 2025, eq. 4).

torch.optim.Muon is the same but always iterates in bfloat16, which most CPUs have to emulate.
"""

from functools import partial

import torch


class Muon(torch.optim.Optimizer):
    """
    params: 2-D weights. lr and weight_decay as AdamW's; momentum: mu above. Where the attribute
    `found_inf` is a tensor of 1, `step` changes nothing, as in torch's fused optimizers.
    """

    _step_supports_amp_scaling = True  # tells torch.amp.GradScaler so

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        # 1 to step, 0 to change nothing: decided on the device, so that nobody waits to know it.
        go = 1 - getattr(self, "found_inf", torch.zeros(()))
        for group in self.param_groups:
            # Weights of one shape go through the iteration together: many small products, one call.
            for shape in sorted({weight.shape for weight in group["params"]}):
                weights = [weight for weight in group["params"] if weight.shape == shape]
                updates = [self.momentum(weight, group["momentum"], go) for weight in weights]
                for weight, update in zip(weights, orthogonal(torch.stack(updates)), strict=True):
                    weight.mul_(1 - go * group["lr"] * group["weight_decay"])
                    weight.add_(update * go, alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)

    def momentum(self, weight, mu, go):
        """The weight's momentum after its gradient, looked at from one step ahead (Nesterov)."""
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        average = state["momentum"]
        gradient = torch.where(go > 0, weight.grad, 0)
        average.lerp_(gradient, (1 - mu) * go)
        return gradient.lerp(average, mu)


def orthogonal(matrices, steps=5):
    """
    Matrices with their singular values brought near 1, by Newton-Schulz iteration.

    matrices: (k, m, n) float; returns the same shape and dtype. The quintic's coefficients are
    Jordan's: steepest at zero, so that small singular values grow quickly, at the price of ending
    somewhere in 0.7..1.2.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices  # the Gram matrix is the smaller of the two
    x = x.bfloat16() if x.is_cuda else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    return (x.mT if tall else x).type_as(matrices)


def make_optimizer(model, settings):
    """
    The optimizers of `model`'s parameters, a list of one or two.

    Matrices decay, vectors and embeddings do not. With optimizer = "muon" the blocks' matrices go
    to Muon and the rest to AdamW.
    """
    lr, decay = settings.learning_rate, settings.weight_decay
    blocks = [p for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("h.")]
    mine = {id(p) for p in blocks}
    rest = {"params": [p for p in model.parameters() if id(p) not in mine], "weight_decay": 0.0}
    adamw = partial(torch.optim.AdamW, lr=lr, betas=(settings.beta1, settings.beta2), fused=True)
    if settings.optimizer == "muon":
        return [adamw([rest]), Muon(blocks, lr, weight_decay=decay)]
    return [adamw([{"params": blocks, "weight_decay": decay}, rest])]
