"""The optimizers: AdamW, Muon for the matrices inside the blocks, and a guard against nan and inf.

Muon is momentum made orthogonal (Jordan et al. 2024). For a matrix W (m, n) with gradient G,

    M <- mu M + (1 - mu) G                                   momentum of the gradient
    W <- (1 - lr wd) W - lr 0.2 sqrt(max(m, n)) orthogonal(mu M + (1 - mu) G)

orthogonal(U S V^T) = U V^T: every direction of the matrix moves equally far, where the gradient has
a few large directions and many small ones. The factor 0.2 sqrt(max(m, n)) gives the update AdamW's
usual size, so that AdamW's learning rates and weight decay carry over (Liu et al. 2025, eq. 4).

torch.optim.Muon (by "match_rms_adamw") always iterates in bfloat16, which many CPUs emulate.
"""

import torch

from nanostories.training.device import computes_in_bfloat16


def make_optimizers(model, settings):
    """The optimizers of all parameters of a GPT, a list of one or two. Only the blocks' matrices
    decay; with optimizer = "muon" they go to Muon and the rest to AdamW. Each group has its
    learning rate times `lr_scale`."""
    named, muon = dict(model.named_parameters()), settings.optimizer == "muon"
    blocks = {
        "params": [p for name, p in named.items() if p.ndim == 2 and name.startswith("h.")],
        "weight_decay": settings.weight_decay,
        "lr_scale": settings.muon_lr_scale if muon else 1.0,
    }
    embeddings = {
        "params": [p for name, p in named.items() if name.startswith(("wte.", "wpe.", "lm_head."))],
        "lr_scale": settings.embedding_lr_scale,
    }
    vectors = {"params": [p for p in named.values() if p.ndim < 2], "lr_scale": 1.0}
    groups = [embeddings, vectors] if muon else [blocks, embeddings, vectors]
    lr, betas = settings.learning_rate, (settings.beta1, settings.beta2)
    adamw = torch.optim.AdamW(groups, lr=lr, betas=betas, weight_decay=0.0, fused=True)
    return [adamw, Muon([blocks], lr, settings.muon_momentum)] if muon else [adamw]


class Muon(torch.optim.Optimizer):
    """params: 2-D weights. lr and weight_decay as AdamW's; momentum: mu above. Where the attribute
    `found_inf` is a tensor of 1, `step` changes nothing, as in torch's fused optimizers."""

    _step_supports_amp_scaling = True  # tells torch.amp.GradScaler so

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        # 1 to step, 0 to change nothing: decided on the device, so that the host need not wait.
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
        """The weight's momentum after its gradient, one step ahead (Nesterov)."""
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        average = state["momentum"]
        gradient = torch.where(go > 0, weight.grad, 0)
        average.lerp_(gradient, (1 - mu) * go)
        return gradient.lerp(average, mu)


def orthogonal(matrices, steps=5):
    """Matrices (k, m, n) with their singular values brought near 1, by Newton-Schulz iteration:

        X <- P X,   P = a I + b G + c G^2,   G = X X^T

    The coefficients are Jordan's: steepest at zero, so that small singular values grow quickly, at
    the price of ending somewhere in 0.7..1.2. That needs no more than bfloat16's digits.

    The P are polynomials of the first G, so they can be multiplied first: the next G is P G P, and
    all products but two are of square matrices of the smaller side. Over a block's matrices that
    is 0.63 of the work. A Gram matrix has the square of X's condition number, so only
    float32 has the digits for it; square matrices would gain nothing.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices  # the Gram matrix is the smaller of the two
    x = x.bfloat16() if computes_in_bfloat16(x.device) else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    if x.dtype == torch.float32 and x.shape[-2] < x.shape[-1]:
        gram, p, product = x @ x.mT, None, None
        for _ in range(steps):
            gram = gram if p is None else p @ gram @ p
            p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            p.diagonal(dim1=-2, dim2=-1).add_(a)
            product = p if product is None else p @ product
        x = product @ x
    else:
        for _ in range(steps):
            gram = x @ x.mT
            p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            x = torch.baddbmm(x, p, x, beta=a)
    return (x.mT if tall else x).type_as(matrices)


class NonFiniteGuard:
    """Keeps a loss or gradient that is nan or inf from changing any weight.

    Reading the loss on the host at every step would empty a GPU's queue of kernels each time. So
    the verdict stays on the device: `check` gives the optimizers `found_inf`, a tensor of 1 where
    they are to change nothing, and the host reads how many steps were bad only when it logs. Until
    then no later step changes a weight either, unless skip=True leaves bad steps out."""

    def __init__(self, optimizers, scaler, device, skip=False):
        self.scaler, self.skip, self.on_mps = scaler, skip, device.type == "mps"
        self.bad_steps, self.first_bad = (torch.zeros((), device=device) for _ in range(2))
        for optimizer in optimizers:
            optimizer.register_step_pre_hook(self._set_found_inf)

    def check(self, step, loss, norm):
        """Judge step number `step` by its loss and gradient norm, 0-D tensors, before the
        optimizers step. Returns False where they must not be called at all: on MPS, whose AdamW
        knows no found_inf."""
        # In float16 a gradient may overflow: the scaler halves its scale, until there is none left.
        scale, overflow = self.scaler.scale(torch.ones_like(loss)), ~norm.isfinite()
        bad = ~loss.isfinite() | (overflow & (scale < 2))
        self.first_bad = torch.where(bad & (self.bad_steps == 0), step + 1, self.first_bad)
        self.bad_steps += bad
        self.found_inf = (overflow | (bad if self.skip else self.bad_steps > 0)).float()
        return not (self.on_mps and self.found_inf.item())

    def _set_found_inf(self, optimizer, *_):
        optimizer.found_inf = self.found_inf

    def count_or_raise(self):
        """Bad steps since the last call, read from the device; FloatingPointError unless skip."""
        count = int(self.bad_steps)
        if count and not self.skip:
            raise FloatingPointError(
                f"step {int(self.first_bad)}: the loss or the gradient is nan or inf "
                "(--skip_nonfinite would leave the step out)"
            )
        self.bad_steps.zero_()
        return count
