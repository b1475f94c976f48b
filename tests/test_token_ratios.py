"""A pair that is known to be bad: a lower bound with a ratio for each token (ESPO, 2512.03759), on two arms.

Where m of n tokens are hidden, a hidden one's term of the bound is `n/m log p`. What a token-level loss takes for its
ratio is then `(new / old)^(n/m)`: no ratio of probabilities, for its exponent is the noise's, from 1 (all hidden) to n
(hidden alone). As the policy moves, a few terms outweigh the rest, and a clip cuts off by the mask that was drawn
instead of by how far the policy went: first what was hidden alone, which is what the policy says of a token that sees
all others. One ratio per completion, over the canvas's length, is the geometric mean of the hidden tokens' own, under
every mask. Without that norm it has the exponent too, and points as far from the gradient that is meant.

The policy's logits of a pull are linear in those it sees, so that every completion and every mask can be enumerated.

Axes: R runs (policies of their own), O completions, M masks, B rows, G pulls, A arms, F features.
"""

import itertools
import math

import pytest
import torch
from lockstitch.rl import losses
from lockstitch.rl.masks import Draw

PULLS, ARMS = 4, 2
FEATURES = 1 + PULLS * ARMS
COMPLETIONS_OG = torch.tensor(list(itertools.product(range(ARMS), repeat=PULLS)))
MASKS_MG = torch.tensor(list(itertools.product([False, True], repeat=PULLS))[1:])
# The bound's noise: any number of tokens is as likely, and any set of that size.
CHANCE_M = 1 / (PULLS * torch.tensor([math.comb(PULLS, m) for m in MASKS_MG.sum(1).tolist()], dtype=torch.float64))
REWARDS = {
    "the first arm pays": (COMPLETIONS_OG == 0).double().mean(1),
    "agreement pays": COMPLETIONS_OG.diff(dim=1).eq(0).all(1).double(),
}
KINDS = ("token", "canvas", "none")  # a ratio per token; per completion, by its norm
every_reward = pytest.mark.parametrize("reward_O", REWARDS.values(), ids=REWARDS)


def random_rewards(runs, seed):
    return torch.randn(runs, len(COMPLETIONS_OG), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_policies(runs, scale, seed):
    noise = torch.Generator().manual_seed(seed)
    return scale * torch.randn(runs, PULLS, ARMS, FEATURES, generator=noise, dtype=torch.float64)


def log_probabilities(policy_R, completion_RBG, hidden_RBG):
    """Of each token given those that are not hidden, `(R, B, G)`."""
    seen = torch.nn.functional.one_hot(completion_RBG, ARMS) * ~hidden_RBG[..., None]
    feature_RBF = torch.cat([torch.ones_like(seen[..., 0, :1]), seen.flatten(-2)], -1).double()
    logp = torch.einsum("rbf,rgaf->rbga", feature_RBF, policy_R).log_softmax(-1)
    return logp.gather(-1, completion_RBG[..., None])[..., 0]


def terms(policy_R, completion_RBG, hidden_RBG):
    """The bound's, as the estimator has them: `n/m log p` of the hidden tokens, `(R, B, G)`."""
    weight = PULLS / hidden_RBG.sum(-1, keepdim=True)
    return weight * log_probabilities(policy_R, completion_RBG, hidden_RBG) * hidden_RBG


def enumerated(runs):
    """Every completion under every mask, `(R, O * M, G)` each."""
    completion = COMPLETIONS_OG[:, None].expand(-1, len(MASKS_MG), -1).flatten(0, 1)
    return completion.expand(runs, -1, -1), MASKS_MG.repeat(len(COMPLETIONS_OG), 1).expand(runs, -1, -1)


def chances(policy_R):
    """Each completion's probability where tokens are drawn one by one in a random order, `(R, O)`."""
    logp = log_probabilities(policy_R, *enumerated(len(policy_R))).unflatten(1, (len(COMPLETIONS_OG), len(MASKS_MG)))
    chance = {frozenset(): torch.ones(len(policy_R), len(COMPLETIONS_OG), dtype=torch.float64)}
    for mask, hidden_G in sorted(enumerate(MASKS_MG), key=lambda pair: int(pair[1].sum())):
        hidden = frozenset(hidden_G.nonzero()[:, 0].tolist())
        chance[hidden] = sum(logp[:, :, mask, k].exp() * chance[hidden - {k}] for k in hidden) / len(hidden)
    return chance[frozenset(range(PULLS))]


def surrogate(kind, new_BG, old_BG, advantage_B, epsilon):
    """Losses of rows, summed: a ratio per token (as TRL's, for rows of one length) or per completion; PPO's clip."""
    if kind == "token":
        ratio_BG, advantage_B1 = (new_BG - old_BG).exp(), advantage_B[:, None]
        clipped_BG = ratio_BG.clamp(1 - epsilon, 1 + epsilon)
        return -torch.minimum(ratio_BG * advantage_B1, clipped_BG * advantage_B1).mean(1).sum()
    norm_B = losses.row_norms(torch.ones_like(new_BG, dtype=torch.bool), kind)
    loss = losses.sequence_loss(new_BG.sum(1), old_BG.sum(1), advantage_B, norm_B, epsilon, epsilon, 1)
    return loss / PULLS if kind == "none" else loss


def expected_gradients(kind, new_R, old_R, reward_RO, epsilon=math.inf):
    """Of the loss over all that the old policies may sample and all masks, `(R, parameters)`."""
    new_R = new_R.clone().requires_grad_()
    everything = enumerated(len(new_R))
    chance_RO = chances(old_R)
    advantage_RO = reward_RO - (chance_RO * reward_RO).sum(1, keepdim=True)
    # A loss is proportional to its advantage: it may carry the row's probability.
    weight_RB = ((chance_RO * advantage_RO)[..., None] * CHANCE_M).flatten(1)
    new, old = (terms(policy, *everything).flatten(0, 1) for policy in (new_R, old_R))
    loss = surrogate(kind, new, old, weight_RB.flatten(), epsilon)
    return torch.autograd.grad(loss, new_R)[0].flatten(1)


def exact_gradients(policy_R, reward_RO):
    """Of the expected reward, `(R, parameters)`."""
    policy_R = policy_R.clone().requires_grad_()
    return torch.autograd.grad((chances(policy_R) * reward_RO).sum(), policy_R)[0].flatten(1)


def test_before_the_policy_moves_all_three_pull_alike():
    policy_R = random_policies(8, 0.7, seed=0)
    reward_RO = random_rewards(8, seed=1)
    token, canvas, none = (expected_gradients(kind, policy_R, policy_R, reward_RO) for kind in KINDS)
    assert token.norm(dim=1).min() > 1e-3
    torch.testing.assert_close(token, canvas)
    torch.testing.assert_close(token, none)


@pytest.mark.parametrize("epsilon", [math.inf, 0.2])
def test_once_it_has_moved_ratios_by_token_point_further_from_the_exact_gradient(epsilon):
    """Random policies, moves and rewards: cosines with the expected reward's gradient where the policy got to."""
    old_R = random_policies(64, 0.7, seed=0)
    new_R = old_R + random_policies(64, 0.3, seed=1)
    reward_RO = random_rewards(64, seed=2)
    exact = exact_gradients(new_R, reward_RO)
    token, canvas, none = (
        -torch.cosine_similarity(expected_gradients(kind, new_R, old_R, reward_RO, epsilon), exact) for kind in KINDS
    )
    for worse in (token, none):
        assert (canvas > worse).sum() >= 60
        assert canvas.mean() > worse.mean() + 0.25


def train(kind, reward_O, runs=32, generations=10, iterations=8, group=16, epsilon=0.2):
    """Mean expected reward over a training of each of `runs` policies, `(R,)`."""
    policy_R = random_policies(runs, 0.3, seed=0).requires_grad_()
    optimizer = torch.optim.Adam([policy_R], lr=0.1)
    noise = torch.Generator().manual_seed(1)
    everything = torch.ones(runs * group, PULLS, dtype=torch.bool)
    curve = []
    for generation in range(generations):
        with torch.no_grad():
            chance_RO, old_R = chances(policy_R), policy_R.clone()
        curve.append((chance_RO * reward_O).sum(1))
        drawn_RB = torch.multinomial(chance_RO, group, replacement=True, generator=noise)
        completion_RBG, reward_RB = COMPLETIONS_OG[drawn_RB], reward_O[drawn_RB]
        advantage_B = (reward_RB - reward_RB.mean(1, keepdim=True)).flatten()
        for iteration in range(iterations):
            draw = Draw(generation * runs * group + torch.arange(runs * group), iteration, 0)
            hidden_RBG = draw.count(everything, 1 + (draw.ratio() * PULLS).long()).view(runs, group, PULLS)
            new, old = (terms(policy, completion_RBG, hidden_RBG).flatten(0, 1) for policy in (policy_R, old_R))
            optimizer.zero_grad()
            (surrogate(kind, new, old, advantage_B, epsilon) / group).backward()
            optimizer.step()
    return torch.stack(curve).mean(0)


@every_reward
def test_ratios_by_token_learn_less(reward_O):
    """Thirty-two pairs of trainings, each from the same start, with the same masks, steps and clip."""
    by_token, by_completion = train("token", reward_O), train("canvas", reward_O)
    assert (by_completion > by_token).sum() >= 27  # by chance: once in 10,000
