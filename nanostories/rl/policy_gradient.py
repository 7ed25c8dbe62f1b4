"""
The policy gradient: how likely a model and its reference make the stories it told, and what to
follow from their rewards.

A story y has the reward R(y). What all methods are about is

    J(pi) = E[R(y)] - beta KL(pi || ref),    y ~ pi,    KL(pi || ref) = E[log pi(y) - log ref(y)]

whose optimum is pi(y) = ref(y) exp(R(y) / beta) / Z, and whose gradient is E[(R(y) - beta
log(pi(y) / ref(y))) grad log pi(y)]. y_t is a token, log pi(y) = sum_t log pi(y_t), up to and with
<|endoftext|> where the story came to it. n stories of one prompt are a group. With
R~_i = R_i - beta log(pi(y_i) / ref(y_i)), which counts as a constant:

    naive       L = mean_i [-R_i log pi(y_i) + beta sum_t KL_t]
                The student report's. Without a baseline the first term is right on average, and
                noisy. The second sees how each token's distribution differs from the reference's
                after what was told, KL_t, but not that other stories may be told: it follows
                E[sum_t grad KL_t], which is the gradient of KL(pi || ref) only for stories of one
                token.
    reinforce   L = mean_i -(R~_i - mean_j R~_j) log pi(y_i)
                Williams 1992. That a story's own reward is in its baseline makes the gradient
                (n - 1) / n of the exact one.
    rloo        L = mean_i -(R~_i - mean_j/=i R~_j) log pi(y_i)
                Leave-one-out (Kool et al. 2019; Ahmadian et al. 2024): n / (n - 1) times reinforce,
                the exact gradient.
    grpo        L = mean_i [-(R_i - mean_j R_j) / (std_j R_j + 1e-4) log pi(y_i)
                            + beta sum_t KL_t] / |y_i|
                Shao et al. 2024, with one update a batch, so that their ratio is 1 and nothing is
                clipped. Their KL term is k3, whose gradient as a loss is that of KL(ref || pi)
                token by token; here it is KL_t itself, KL(pi || ref), over the whole vocabulary.

All KL here is KL(pi || ref), in nats, summed over the vocabulary and over a story's tokens.
"""

import torch

from kernels.cross_entropy import IGNORE_INDEX

METHODS = ("naive", "reinforce", "rloo", "grpo")
KL_IN_LOSS = ("naive", "grpo")


def log_probs(model, tokens, temperature):
    """The log-probabilities of all tokens at each place, float32 (N, T, V), at a temperature."""
    return (model(tokens).float() / temperature).log_softmax(-1)


def of_told(logs, targets):
    """Those of the tokens that were told, (N, T), 0 elsewhere. logs: (N, T, V)."""
    place = targets.clamp(min=0)[..., None]  # (N, T, 1)
    return torch.where(targets != IGNORE_INDEX, logs.gather(-1, place)[..., 0], 0.0)


def compare(policy, reference, tokens, targets, temperature=1.0, kl_in_loss=False):
    """
    (log pi, log ref, KL_t), each (N, T) float32 and 0 where no token was told.

    The models are GPTs, at this temperature; tokens, targets: see Rows. log pi has a gradient, and
    KL_t has one with kl_in_loss.
    """
    ours = log_probs(policy, tokens, temperature)
    with torch.no_grad():
        theirs = log_probs(reference, tokens, temperature)
    log_pi, log_ref = of_told(ours, targets), of_told(theirs, targets)
    ours = ours if kl_in_loss else ours.detach()
    kl = torch.where(targets != IGNORE_INDEX, (ours.exp() * (ours - theirs)).sum(-1), 0.0)
    return log_pi, log_ref, kl


def advantages(method, rewards, nats, beta, group):
    """
    What log pi(y_i) is multiplied with, (N,).

    rewards: (N,) R_i. nats: (N,) log(pi(y_i) / ref(y_i)). group: how many stories in a row belong
    to one prompt. Raises ValueError for a method that is none, or a group too small for it.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not '{method}'")
    if method == "naive":
        return rewards
    if group < 2:
        raise ValueError(f"method {method} compares stories of one prompt: it takes two at least")
    if method == "grpo":
        groups = rewards.view(-1, group)
        apart = groups - groups.mean(1, keepdim=True)
        return (apart / (groups.std(1, correction=0, keepdim=True) + 1e-4)).flatten()
    groups = (rewards - beta * nats).view(-1, group)
    apart = groups - groups.mean(1, keepdim=True)
    return (apart * (group / (group - 1) if method == "rloo" else 1.0)).flatten()


def loss(method, advantage, log_pi, kl, told, beta):
    """Each story's share of L, (N,): advantage (N,) as of `advantages`; log_pi, kl, told (N, T)."""
    found = -advantage * log_pi.sum(1)
    if method in KL_IN_LOSS:
        found = found + beta * kl.sum(1)
    return found / told.sum(1) if method == "grpo" else found


def estimates(log_pi, log_ref):
    """
    {k1, k2, k3}: estimates of each story's KL from the tokens told alone, (N,) each.

    Schulman 2020: with d = log ref - log pi of a token, the sums of k1 = -d, k2 = d^2 / 2 and
    k3 = e^d - 1 - d. On average k1 and k3 are right.
    """
    d = log_ref - log_pi
    return {"k1": -d.sum(1), "k2": (d * d / 2).sum(1), "k3": (d.expm1() - d).sum(1)}
