"""Programs: reading them out of completions, taking tests apart, and judging from outside what a program answers.

`code_rewards`, outside, are the rewards. `code_blocks` and `code_extract` read programs, `code_names`, `code_shape`,
`code_tests` and `code_pairs` tests; `judge` asks and `same` compares, and `sandbox_fusion` does it on a server. Tests that
are no plain comparison run in a sandbox of their own, on `tests_side` and `remote_objects` and, for packages that are not
there, the two `stand_in` modules; in the program's, `program_side` answers them. What keeps a program away from everything
else is `lockstitch.rewards.sandbox`.
"""

if __name__ == "programs":
    raise ImportError("import lockstitch.rewards.programs: the folders of the repository are parts of one package")
