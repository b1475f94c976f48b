"""Puzzles: countdown, 4x4 Sudoku and arithmetic chains, each with its rules and generator, and the rewards for them.

`forms` reads their rows and the tasks' own forms of answers, `reading` whatever else completions answer with,
`puzzle_rewards`, outside, judges; `checkers` says what a sound step is.
"""

if __name__ == "puzzles":
    raise ImportError("import lockstitch.rewards.puzzles: the folders of the repository are parts of one package")
