"""The policy gradient by enumeration: a model of three tokens and completions of at most three, so
that every expectation is a sum.
"""

import itertools
import math

import pytest
import torch

from kernels.cross_entropy import IGNORE_INDEX
from model import GPT, GPTConfig
from nanostories.dataset import packing
from nanostories.inference.generate import Completion
from nanostories.rl import policy_gradient

EOT, LENGTH, BETA = 0, 3, 0.3  # of the tokens 0, 1, 2; most tokens of a completion


def model(seed):
    """A GPT whose distributions are far from even."""
    torch.manual_seed(seed)
    net = GPT(GPTConfig(vocab_size=3, block_size=8, n_layer=1, n_head=2, n_embd=8)).double()
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.4 * torch.randn_like(weight)
    return net.eval()


def all_completions():
    """All completions of at most LENGTH tokens: ended by EOT, or cut."""
    whole = [Completion(list(ids), True) for n in range(LENGTH)
             for ids in itertools.product((1, 2), repeat=n)]  # fmt: skip
    return whole + [Completion(list(ids)) for ids in itertools.product((1, 2), repeat=LENGTH)]


COMPLETIONS = all_completions()
BATCH = packing.pad_batch([[EOT, 1]] * len(COMPLETIONS), COMPLETIONS, EOT, "cpu")
REWARDS = torch.tensor([math.sin(3 * i) for i in range(len(COMPLETIONS))], dtype=torch.float64)


def compare(net, reference, kl_in_loss=False, temperature=1.0):
    # float64: in compare's float32 an enumerated gradient could not tell a slightly wrong one.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        return policy_gradient.compare(
            net, reference, BATCH.tokens, BATCH.targets, temperature, kl_in_loss
        )  # fmt: skip


def gradient(value, net):
    grads = torch.autograd.grad(value, list(net.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in grads if g is not None])


@pytest.fixture(scope="module")
def nets():
    return model(0), model(1).requires_grad_(False)


def objective(net, reference, rewards=REWARDS, beta=BETA):
    """J(pi), as it is defined."""
    log_pi, log_ref, _ = compare(net, reference)
    log_ratios = log_pi.sum(1) - log_ref.sum(1)
    return (log_pi.sum(1).exp() * (rewards - beta * log_ratios)).sum()


def test_all_completions_are_there(nets):
    """Their probabilities add up to one; EOT is a token, and nothing after it counts."""
    log_pi, *_ = compare(*nets)
    assert log_pi.sum(1).exp().sum().item() == pytest.approx(1)
    assert BATCH.completion_mask.sum(1).tolist() == [len(s.ids) + s.ended for s in COMPLETIONS]
    assert (BATCH.targets[:, 0] == IGNORE_INDEX).all()  # the prompt's


def test_exact_kl(nets):
    """Over the vocabulary at each position or over the completions: the same KL(pi || ref)."""
    log_pi, log_ref, kl = compare(*nets)
    p = log_pi.sum(1).exp()
    whole = (p * (log_pi - log_ref).sum(1)).sum()
    assert (p * kl.sum(1)).sum().item() == pytest.approx(whole.item())
    reverse = (log_ref.sum(1).exp() * (log_ref - log_pi).sum(1)).sum()
    assert abs(whole - reverse) > 0.05 * whole


def test_estimates(nets):
    """k1 and k3 are right on average; k2 is of the same size."""
    log_pi, log_ref, kl = compare(*nets)
    p = log_pi.sum(1).exp()
    whole = (p * kl.sum(1)).sum().item()
    means = {
        name: (p * k).sum().item()
        for name, k in policy_gradient.kl_estimates(log_pi, log_ref).items()
    }
    assert means["k1"] == pytest.approx(whole) == means["k3"]
    assert 0.3 * whole < means["k2"] < 3 * whole


def mean_loss(method, terms, size):
    """A method's loss, the mean over all groups of `size` completions. terms: of `compare`."""
    log_pi, log_ref, kl = terms
    log_ratios, p = (log_pi - log_ref).sum(1).detach(), log_pi.sum(1).exp().detach()
    groups = torch.tensor(list(itertools.product(range(len(COMPLETIONS)), repeat=size)))
    i = groups.flatten()
    a = policy_gradient.advantages(method, REWARDS[i], log_ratios[i], BETA, size)
    losses = policy_gradient.loss(method, a, log_pi[i], kl[i], BATCH.completion_mask[i], BETA)
    return (p[groups].prod(1) * losses.view(-1, size).mean(1)).sum()


def expected(method, nets, size):
    """The mean gradient of a method's loss over all groups of `size` completions."""
    return -gradient(
        mean_loss(method, compare(*nets, method in policy_gradient.KL_IN_LOSS), size), nets[0]
    )


@pytest.mark.parametrize("size", [2, 3])
def test_leave_one_out_follows_the_exact_gradient(nets, size):
    exact = gradient(objective(*nets), nets[0])
    torch.testing.assert_close(expected("rloo", nets, size), exact, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("size", [2, 3])
def test_a_mean_baseline_shortens_it(nets, size):
    exact = gradient(objective(*nets), nets[0]) * (size - 1) / size
    torch.testing.assert_close(expected("reinforce", nets, size), exact, rtol=1e-8, atol=1e-10)


def test_what_naive_follows(nets):
    """The reward exactly; of the KL only how each token's distribution differs."""
    net, reference = nets
    reward = gradient(objective(net, reference, beta=0.0), net)
    log_pi, _, kl = compare(net, reference, kl_in_loss=True)
    tokens_only = gradient((log_pi.sum(1).exp().detach() * kl.sum(1)).sum(), net)
    followed = expected("naive", nets, 1)
    torch.testing.assert_close(followed, reward - BETA * tokens_only, rtol=1e-8, atol=1e-10)
    exact = gradient(objective(net, reference), net)
    assert (followed - exact).norm() > 0.05 * exact.norm()


def test_what_grpo_follows(nets):
    """The better of two completions has the advantage 1, the other -1, whatever the distance."""
    net, reference = nets
    log_pi, _, kl = compare(net, reference, kl_in_loss=True)
    p, length = log_pi.sum(1).exp().detach(), BATCH.completion_mask.sum(1)
    better = torch.sign(REWARDS[:, None] - REWARDS[None]) @ p  # how much oftener i wins than loses
    value = (p * (better * log_pi.sum(1) - BETA * kl.sum(1)) / length).sum()
    torch.testing.assert_close(expected("grpo", nets, 2), gradient(value, net), rtol=1e-2,
                               atol=1e-4)  # fmt: skip


def test_advantages_by_hand():
    rewards, log_ratios = torch.tensor([1.0, 3.0, 2.0, 6.0]), torch.tensor([0.0, 2.0, 0.0, 0.0])
    args = (rewards, log_ratios, 0.5, 2)
    assert policy_gradient.advantages("naive", *args).tolist() == [1, 3, 2, 6]
    assert policy_gradient.advantages("reinforce", *args).tolist() == [-0.5, 0.5, -2, 2]
    assert policy_gradient.advantages("rloo", *args).tolist() == [-1, 1, -4, 4]
    assert policy_gradient.advantages("grpo", *args) == pytest.approx([-1, 1, -1, 1], abs=1e-3)
    equal = policy_gradient.advantages("grpo", torch.ones(4), log_ratios, 0.5, 4)
    assert equal.tolist() == [0, 0, 0, 0]  # and not nan
    with pytest.raises(ValueError, match="method must be one of"):
        policy_gradient.advantages("ppo", *args)
    with pytest.raises(ValueError, match="group_size >= 2"):
        policy_gradient.advantages("rloo", rewards, log_ratios, 0.5, 1)


@pytest.mark.parametrize("method", ["rloo", "reinforce"])
def test_training_reaches_the_optimum(method):
    """pi_ref exp(R / beta) / Z: with expected gradients, which sampled ones are on average."""
    net, reference = model(0), model(1).requires_grad_(False)
    log_ref = compare(reference, reference)[1].sum(1)
    target = (log_ref + REWARDS / BETA).softmax(0)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / 400)
        loss = mean_loss(method, compare(net, reference), 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    reached = compare(net, reference)[0].sum(1).exp()
    assert (reached - target).abs().sum() < 0.02
    assert objective(net, reference) > objective(model(0), reference) + 0.1


def test_temperature(nets):
    """Both models are those at the temperature."""
    log_pi, log_ref, kl = compare(*nets, temperature=0.5)
    for net, log_probs in zip(nets, (log_pi, log_ref), strict=True):
        logits = net(BATCH.tokens) / 0.5
        logs = logits.log_softmax(-1).gather(2, BATCH.targets.clamp(min=0)[..., None])[..., 0]
        torch.testing.assert_close(
            log_probs, torch.where(BATCH.completion_mask, logs, 0.0), rtol=1e-9, atol=1e-9
        )
    assert (kl >= 0).all() and (kl[~BATCH.completion_mask] == 0).all()
