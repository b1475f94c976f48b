"""Made-up trajectories with every kind of event, and the canvases that they went through as they did."""

import random

from lockstitch.sampling.trajectory import Edit, Ledger, Trajectory

MASK = 2


def simulate(seed, length=12, steps=8, tokens=range(3, 400)):
    """A random run of commits, reopenings and replacements around pinned positions.

    Returns the trajectory, and per step from 0 a list of (token or None, what happened) for each position, where what
    happened is pinned, now, committed, reopened or masked.
    """
    rng = random.Random(seed)
    tokens = list(tokens)
    pinned = {p: rng.choice(tokens) for p in range(length) if rng.random() < 0.2}
    canvas = [pinned.get(p) for p in range(length)]
    since = [0 if p in pinned else -1 for p in range(length)]
    confidence = [1.0 if p in pinned else 0.0 for p in range(length)]
    history = [[(t, "masked" if t is None else "pinned") for t in canvas]]
    edits = []
    for step in range(1, steps + 1):
        row = []
        for p in range(length):
            happened = "pinned" if p in pinned else "masked" if canvas[p] is None else "committed"
            if p not in pinned and rng.random() < 0.4:
                if canvas[p] is not None:
                    edits.append(Edit(step, p, canvas[p], since[p]))
                    canvas[p], since[p], happened = None, -1, "reopened"
                if happened == "masked" or rng.random() < 0.5:  # committed, or replaced at once
                    canvas[p], since[p], happened = rng.choice(tokens), step, "now"
                    confidence[p] = rng.random()
            row.append((canvas[p], happened))
        history.append(row)
    trajectory = Trajectory(
        prompt=seed,
        seed=rng.getrandbits(63),
        prompt_ids=(3, 4, 5),
        canvas_ids=tuple(MASK if t is None else t for t in canvas),
        length=length,
        text="made up",
        finished=False,
        commit_step=tuple(since),
        confidence=tuple(c if s >= 0 else 0.0 for c, s in zip(confidence, since, strict=True)),
        entropy=tuple(rng.random() if s > 0 else 0.0 for s in since),
        block=tuple(p // 4 if s > 0 else -1 for p, s in enumerate(since)),
        edits=tuple(edits),
        forks=tuple(p for p, s in enumerate(since) if s > 0 and rng.random() < 0.3),
        ledger=Ledger(nfe=steps, tokens_forwarded=steps * (length + 3), sequential_steps=steps, seconds=rng.random()),
    )
    return trajectory, history
