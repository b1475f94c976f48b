"""The program in a completion: its last fenced block, the answer block, or all of it; and the ways to read it.

A completion may be a whole program or only the body of a function whose header the prompt gave. Which one it is, the
compiler decides, inside the sandbox: no completion is parsed as Python here. All of this takes time linear in the length
of the text, in the number of its blocks at most quadratic, and only the last twenty count.
"""

import builtins
import keyword
import re
import textwrap
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from lockstitch.rewards.programs.code_blocks import Block, answer_in, blocks_in, cleaned, without_strings

_SOURCE_BEGINS = re.compile(r"^(?:from |import |def |class |@|async def )", re.MULTILINE)
_DEFINES = re.compile(r"^(?:async )?(?:def|class)[ \t]+(\w+)|^([A-Z][A-Z0-9_]*)[ \t]*=(?!=)", re.MULTILINE)
_IMPORTS = re.compile(r"^(?:from[ \t]+[\w.]+[ \t]+)?import[ \t]+([^\n]+)", re.MULTILINE)
_WORD = re.compile(r"[^\W\d]\w*")
_READS, _WRITES = re.compile(r"\binput\(|\bstdin\b|\bopen\(0"), re.compile(r"\bprint\(|\bstdout\b|\bwrite\(")
_STATEMENT = re.compile(
    r"(?:def|class|async|import|from|if|elif|else|for|while|with|try|except|finally|return|raise|assert|print|pass|del|global"
    r"|nonlocal|yield|lambda|match|case|break|continue|await|not)\b|[@#\"'\d()\[\]{}*.-]"
    r"|[\w.]+[ \t]*(?:[-+*/%&|^@]|//|<<|>>|\*\*)?=|[\w.]+(?:\(|\[|[ \t]*[,:)\]}])"
)
_CLASS = re.compile(r"^class ", re.MULTILINE)
_COMPOUND = re.compile(r"(?:def|class|async|if|for|while|with|try|from|import)\b|@")
_SPAN = re.compile(r"(`{1,3})(?:(?:python|py)[ \t])?([^`]+)\1")
_MOST_BLOCKS = 20
_KNOWN = frozenset(vars(builtins)) | frozenset(keyword.kwlist)


@dataclass(frozen=True)
class Code:
    """What was found.

    Attributes:
        text: the program, or the body of a function.
        is_whole: whether its end was marked, so that nothing after it may be left out.
    """

    text: str
    is_whole: bool = True


def extract_code(text: str, names: Collection[str] = (), *, reads: bool = False) -> str:
    """The text of `find_code`."""
    return find_code(text, names, reads=reads).text


def find_code(text: str, names: Collection[str] = (), *, reads: bool = False) -> Code:
    """The program in a completion.

    Thoughts are left out, and then the answer block is read, unless only what is outside it has a program. There it is
    the last fenced block marked as Python, or else the last one that is not marked as something else; a block that is not
    closed reaches to the end, and a fence that only closes ends what stands before it. Of several, the last that defines
    the most of the names, or for a program that reads and writes the last that does: examples of use and of output may
    follow. Blocks that define what it uses come before it. Without a block, the whole text.

    Args:
        text: a completion.
        names: what the program is expected to define.
        reads: whether it is a program that reads and writes.
    """
    text = cleaned(text)
    answer = answer_in(text)
    if answer is not None:
        inside = _find(answer, names, reads)
        outside = _find(text, names, reads) if names and not _defined(inside.text, names) else inside
        return outside if _defined(outside.text, names) else inside
    return _find(text, names, reads)


def _defined(source: str, names: Collection[str]) -> int:
    return sum(defines(source, name) for name in names)


def _find(text: str, names: Collection[str], reads: bool) -> Code:
    before, blocks = blocks_in(text)
    if _is_program(before, blocks, names, reads):
        return Code(before)
    block = _chosen(blocks[-_MOST_BLOCKS:], names, reads)
    if block is not None:
        return Code(_with_helpers(block, blocks[-_MOST_BLOCKS:], names), block.is_closed)
    spans = [match[2] for match in _SPAN.finditer(text)] if names else []
    span = next((span for span in reversed(spans) if _defined(span, names)), None)
    return Code(before if before.strip() else text, is_whole=False) if span is None else Code(span)


def _is_program(before: str, blocks: list[Block], names: Collection[str], reads: bool) -> bool:
    """Whether the first fence only ends what stands before it, since the prompt has opened it."""
    if not before.strip() or any(_defined(block.body, names) for block in blocks):
        return False
    if _defined(before, names):
        return True
    is_lone = not [block for block in blocks if block.is_closed or block.kind == "python"]
    lines = [line for line in before.split("\n") if line.strip()]
    return is_lone and bool(blocks) and not is_prose(lines[0]) and not (reads and _WRITES.search(blocks[-1].body))


def _chosen(blocks: list[Block], names: Collection[str], reads: bool) -> Block | None:
    groups = [[block for block in blocks if block.kind == kind] for kind in ("python", "any")]
    for group in groups:
        most = max((_defined(block.body, names) for block in group), default=0)
        if most:
            return [block for block in group if _defined(block.body, names) == most][-1]
    if reads:
        for signs in ((_READS, _WRITES), (_WRITES,)):
            for group in groups:
                found = [block for block in group if all(sign.search(block.body) for sign in signs)]
                if found:
                    return found[-1]
    if groups[0]:
        return groups[0][-1]
    code = [block for block in groups[1] if not all(map(is_prose, block.body.strip().split("\n")))]
    return (code or groups[1])[-1] if groups[1] else None


def _with_helpers(block: Block, blocks: list[Block], names: Collection[str]) -> str:
    """The block, behind those that define what it uses and does not define."""
    if names and not _defined(block.body, names):
        return block.body  # the body of a function
    parts, others = [block], [other for other in blocks if other is not block and other.kind != "other"]
    while True:
        ours = frozenset().union(*(_definitions(part.body) for part in parts))
        needed = frozenset().union(*(_WORD.findall(part.body) for part in parts)) - ours - _KNOWN
        more = [other for other in others if _definitions(other.body) & needed and not _definitions(other.body) & ours]
        if not more:
            break
        parts.append(more[-1])
        others.remove(more[-1])
    helpers = [other for other in blocks if other is not block and any(other is part for part in parts)]
    return "\n\n".join(textwrap.dedent(part.body) for part in (*helpers, block)) if helpers else block.body


def _definitions(source: str) -> frozenset[str]:
    """What the source defines for others: functions, classes, constants, imports."""
    source = textwrap.dedent(source)
    names = {match[1] or match[2] for match in _DEFINES.finditer(source)}
    for match in _IMPORTS.finditer(source):
        names.update(
            word for part in match[1].split(",") if (word := part.strip("() \t").rpartition(" ")[2].partition(".")[0])
        )
    return frozenset(names)


def is_prose(line: str) -> bool:
    """Whether a line that is not indented is no line of a program; words and full stops are not parsed."""
    return bool(line.strip()) and line[0] not in " \t" and not _STATEMENT.match(line)


def defines(source: str, name: str) -> bool:
    """Whether a line of the source begins to define a function or class, or a variable, of that name."""
    word = re.escape(name)
    pattern = rf"^[ \t]*(?:(?:async )?def|class)[ \t]+{word}\b|^[ \t]*{word}[ \t]*(?::[^=\n]{{1,80}})?=(?!=)"
    return bool(re.search(pattern, source, re.MULTILINE))


def header_in(prompt: str, entry_point: str) -> str | None:
    """The source in a prompt that begins the function, or None: a fenced block, or all from its first statement on."""
    if not defines(prompt, entry_point):
        return None
    code = extract_code(prompt, [entry_point])
    begins = _SOURCE_BEGINS.search(code)
    return code[begins.start() :] if begins and defines(code, entry_point) else None


def variants(
    code: str, header: str | None = None, entry_point: str | None = None, *, is_whole: bool = True
) -> tuple[str, ...]:
    """The ways to read a program, most likely first; the first that compiles is meant.

    Args:
        code: what `find_code` found.
        header: what the prompt gave: imports, helpers, the function's first lines.
        entry_point: the function that the header begins.
        is_whole: nothing may be left out: no prose around it, no last function that is cut off.
    """
    is_body = header is not None and not (entry_point is not None and defines(code, entry_point))
    parts = (code,) if is_whole else (code, *_parts(code, is_body))
    return tuple(dict.fromkeys(way for part in parts for way in _ways(part, header, entry_point)))


def _ways(code: str, header: str | None, entry_point: str | None) -> list[str]:
    plain = textwrap.dedent(code)
    if header is None:
        return [code, plain]
    if entry_point is not None and defines(code, entry_point):
        word = re.escape(entry_point)
        if _CLASS.search(plain) and not re.search(rf"^(?:(?:async )?def[ \t]+)?{word}\b", plain, re.MULTILINE):
            # It is a method of a class: the header's own beginning of the function must not stand for it.
            return [f"{header}\n    pass\n\n{plain}\n\ndel {entry_point}\n", f"{header}\n\n{plain}", plain]
        # Without its indentation first: with it, it may compile as a part of the function in the header.
        return [f"{header}\n\n{plain}", f"{header}\n\n{code}", plain, code]
    # A body. Its first line often comes without its indentation, or all lines do.
    joint = "" if header.endswith("\n") else "\n"
    first = f"{header}{joint}    {code.lstrip()}"
    every = f"{header}{joint}{textwrap.indent(plain.lstrip(chr(10)), '    ')}"
    is_indented = code.lstrip("\n")[:1] in (" ", "\t")
    return [f"{header}{joint}{code}", every] if is_indented else [first, every]


def _parts(code: str, is_body: bool) -> Iterator[str]:
    """The code without prose before and after it, and without what begins last and is cut off."""
    lines, quote, outer = code.split("\n"), "", []  # the lines at the margin, outside of texts of several lines
    for number, line in enumerate(lines):
        if not quote and line.strip() and line[0] not in " \t":
            outer.append(number)
        quote = without_strings(line, quote)[1]
    prose = [number for number in outer if is_prose(lines[number])]
    prose_lines = frozenset(prose)
    start = next((number for number, line in enumerate(lines) if line.strip() and number not in prose_lines), 0)
    later = [number for number in outer if number > start]
    yield "\n".join(lines[start : next((number for number in prose if number > start), len(lines))])
    if later and (is_body or _is_cut_off("\n".join(lines[later[-1] :]))):
        yield "\n".join(lines[start : later[-1]])
    if later and is_body:
        yield "\n".join(lines[start : later[0]])


def _is_cut_off(statement: str) -> bool:
    """Whether a statement that does not compile may be one that was not written to its end."""
    return bool(_COMPOUND.match(statement)) or statement.count("(") > statement.count(")")
