"""The program in a completion: its last fenced block, the answer block, or all of it; and the ways to read it.

A completion may be a whole program or only the body of a function whose header the prompt gave. Which one it is, the
compiler decides, inside the sandbox: no completion is parsed as Python here. All of this takes time linear in the length
of the text.
"""

import re
import textwrap
from collections.abc import Collection, Iterator

from lockstitch.rewards.marks import last_answer_block, without_special_tokens

_FENCE = re.compile(r"[ \t]{0,60}(`{3,60}|~{3,60})[ \t]{0,60}([\w+#.-]{0,40})[^\n`]*")
_PYTHON = frozenset({"python", "python3", "py", "py3"})
_SOURCE_BEGINS = re.compile(r"^(?:from |import |def |class |@|async def )", re.MULTILINE)


def extract_code(text: str, names: Collection[str] = ()) -> str:
    """The program in a text.

    The last fenced block marked as Python, or else the last unmarked one; a block that is not closed reaches to the end.
    Of several, the last that defines one of the names, if one does: an example of use may follow. Without a block, the
    content of the last `<answer>`, or the whole text.

    Args:
        text: a completion.
        names: what the program is expected to define.
    """
    text = without_special_tokens(text)
    blocks = list(_blocks(text))
    bodies = [body for label, body in blocks if label in _PYTHON] or [body for label, body in blocks if not label]
    if not bodies:
        answer = last_answer_block(text)
        return text if answer is None else answer
    return next((body for body in reversed(bodies) if any(defines(body, name) for name in names)), bodies[-1])


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    """Label and content of every fenced block."""
    fence, label, body = "", "", [""]
    for line in text.split("\n"):
        match = _FENCE.fullmatch(line)
        if not fence:
            if match:
                fence, label, body = match[1], match[2].lower(), []
        elif match and match[1].startswith(fence) and not match[2]:
            yield label, "\n".join(body)
            fence = ""
        else:
            body.append(line)
    if fence:
        yield label, "\n".join(body)


def defines(source: str, name: str) -> bool:
    """Whether a line of the source begins to define a function or class, or a variable, of that name."""
    word = re.escape(name)
    return bool(re.search(rf"^[ \t]*(?:(?:async )?def|class)[ \t]+{word}\b|^{word}[ \t]*=(?!=)", source, re.MULTILINE))


def header_in(prompt: str, entry_point: str) -> str | None:
    """The source in a prompt that begins the function, or None: a fenced block, or all from its first statement on."""
    if not defines(prompt, entry_point):
        return None
    code = extract_code(prompt, [entry_point])
    begins = _SOURCE_BEGINS.search(code)
    return code[begins.start() :] if begins and defines(code, entry_point) else None


def variants(code: str, header: str | None = None, entry_point: str | None = None) -> tuple[str, ...]:
    """The ways to read a program, most likely first; the first that compiles is meant.

    Args:
        code: what `extract_code` found.
        header: what the prompt gave: imports, helpers, the function's first lines.
        entry_point: the function that the header begins.
    """
    plain = textwrap.dedent(code)
    if header is None:
        ways = [code, plain]
    elif entry_point is not None and defines(code, entry_point):
        # Without its indentation first: with it, it may compile as a part of the function in the header.
        ways = [f"{header}\n\n{plain}", f"{header}\n\n{code}", plain, code]
    else:
        # A body. Its first line often comes without its indentation, or all lines do.
        joint = "" if header.endswith("\n") else "\n"
        first = f"{header}{joint}    {code.lstrip()}"
        every = f"{header}{joint}{textwrap.indent(plain.lstrip(chr(10)), '    ')}"
        is_indented = code.lstrip("\n")[:1] in (" ", "\t")
        ways = [f"{header}{joint}{code}", every] if is_indented else [first, every]
    return tuple(dict.fromkeys(ways))
