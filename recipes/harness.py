"""`lockstitch lm-eval`: EleutherAI's lm-evaluation-harness with our models in it, under the name `lockstitch`.

    lockstitch lm-eval --tasks gsm8k --batch_size 16 --model_args pretrained=GSAI-ML/LLaDA-8B-Instruct,preset=llada

What stands behind the command is the harness's own: `run`, `ls`, `validate` and their options. The harness finds models that
were registered before it starts, and looks for none in other packages: this is what registers ours. From Python, importing
`lockstitch.recipes.harness_model` does.
"""

import sys
from importlib.util import find_spec

from lockstitch.errors import reported

NAME = "lockstitch"
_COMMANDS = ("run", "ls", "validate")


_HELP = """\
usage: lockstitch lm-eval [run|ls|validate] ...

EleutherAI's lm-evaluation-harness with our models in it. Words and options are the harness's own:
`lockstitch lm-eval run --help` tells them. Where nothing else is said, `run` is meant, with

  --model lockstitch
  --model_args pretrained=MODEL[,preset=NAME][,peft=ADAPTER][,num_samples=N][,FIELD=VALUE ...]
                        FIELD is any field of SamplerConfig: steps, block_length, temperature, ...

  lockstitch lm-eval --tasks gsm8k --batch_size 16 --model_args pretrained=GSAI-ML/LLaDA-8B-Instruct,preset=llada
"""


def arguments(argv: list[str]) -> list[str]:
    """The harness's own arguments: `run` and our model are what is meant where they are not said."""
    command, rest = (argv[0], argv[1:]) if argv[0] in _COMMANDS else ("run", argv)
    said = {word.partition("=")[0] for word in rest}
    if command != "run" or said & {"--model", "-M", "--config", "-C", "-h", "--help"}:
        return [command, *rest]
    return [command, "--model", NAME, *rest]


@reported("lockstitch lm-eval", "interrupted; with --use_cache FILE, what is done is kept")
def main(argv: list[str] | None = None) -> int:
    """Entry point of `lockstitch lm-eval`."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_HELP, end="")
        return 0
    if find_spec("lm_eval") is None:
        raise ValueError("lm-evaluation-harness is not installed: pip install 'lockstitch[eval]'")
    from lm_eval.__main__ import cli_evaluate
    from lockstitch.recipes import harness_model

    assert harness_model.NAME == NAME
    before = sys.argv
    sys.argv = ["lockstitch lm-eval", *arguments(argv)]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
