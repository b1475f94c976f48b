"""Tasks: what is asked, where rows come from, how a model is asked, which rewards pay, and the grading of a whole file.

`task` has each task's side of reasoning, `benchmark` and `benchmarks` that of grading and training; `notations` reads rows,
`benchmark_rows` fetches them, `reasoning_gym_task` makes them up. `grade` and `grade_cli` are `lockstitch grade`.
"""

if __name__ == "tasks":
    raise ImportError("import lockstitch.rewards.tasks: the folders of the repository are parts of one package")
