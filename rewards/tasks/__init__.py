"""Tasks: what is asked, where rows come from, how a model is asked, which rewards pay, and the grading of a whole file.

`task` says what a task is, `builtin` has those of the package, `own` reads a user's, `named` finds them all; `notations`
reads rows, `rows` and `data` fetch them, `reasoning_gym_task` makes them up. `grade` and `grade_cli` are `lockstitch grade`,
`tasks_cli` is `lockstitch tasks`.
"""

if __name__ == "tasks":
    raise ImportError("import lockstitch.rewards.tasks: the folders of the repository are parts of one package")
