"""The sandbox: a process for a program that nobody trusts, the walls around it, and the pipe over which it is asked.

`launchers` starts it, inside of `bubblewrap`, a `cgroup` and the filter of `seccomp`, by way of `children`, whose `keeper`
leaves nothing behind when we are killed. `process` is one that was started, and `sandbox_watch` looks at what it uses.
`sandbox_worker` runs inside; `tagged` is how values cross. What a program is asked, and why, is not known here.
"""

if __name__ == "sandbox":
    raise ImportError("import lockstitch.rewards.sandbox: the folders of the repository are parts of one package")
