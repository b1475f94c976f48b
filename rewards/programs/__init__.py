"""Programs: reading them out of completions, taking tests apart, and judging from outside what a program answers.

`code_rewards` are the rewards, `code_extract` reads programs and `code_tests` tests; `judge` asks and compares, and
`sandbox_fusion` does it on a server. What keeps a program away from everything else is `lockstitch.rewards.sandbox`.
"""

if __name__ == "programs":
    raise ImportError("import lockstitch.rewards.programs: the folders of the repository are parts of one package")
