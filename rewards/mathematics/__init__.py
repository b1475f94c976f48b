"""Math: what a completion answers, whether it is right, and whether the equations on the way hold.

An answer goes through `reading` (which words count), `spelling` (one notation) and `words` (numbers, units). Two answers go
through `forms` (sets, intervals, times, words), `comparing` and `plain` (numbers, exactly). `math_rewards`,
outside, judges; `math_worker` is what its workers run, `equations` checks reasoning.
"""

if __name__ == "mathematics":
    raise ImportError("import lockstitch.rewards.mathematics: the folders of the repository are parts of one package")
