"""Puzzles: countdown, 4x4 Sudoku and arithmetic chains, each with its rules and generator, and the rewards for them."""

if __name__ == "puzzles":
    raise ImportError("import lockstitch.rewards.puzzles: the folders of the repository are parts of one package")
