"""Math: where a completion has its answer, whether it is the right one, and whether the equations on the way hold.

`math_rewards` reads and judges answers, `math_worker` is what its workers run, `equations` checks reasoning.
"""

if __name__ == "mathematics":
    raise ImportError("import lockstitch.rewards.mathematics: the folders of the repository are parts of one package")
