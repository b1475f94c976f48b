"""The page of `gpu_check.py`: tables in one HTML file that needs nothing else, neither scripts nor a network."""

from html import escape

STYLE = """
body { max-width: 72rem; margin: 2rem auto; padding: 0 1.5rem; font: 15px/1.5 system-ui, sans-serif; color: #1d1f23;
       background: #fff; }
table { border-collapse: collapse; margin: .8rem 0 1.6rem; }
th, td { border-bottom: 1px solid #dedcd6; padding: .25rem .8rem; text-align: right; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child, td.text { text-align: left; }
.warning { font-size: 2.2rem; font-weight: 700; line-height: 1.2; color: #a33f00; border: .3rem solid #d55e00;
           padding: 1rem 1.4rem; }
.failed { color: #a33f00; font-weight: 700; }
"""
CPU = ("This ran on a CPU. Its figures say nothing of a GPU.", "It proves that the check itself runs, on tiny models.")


def table(head, rows):
    """A table; cells that are no numbers stand left."""
    cells = "".join(f"<th>{escape(str(name))}</th>" for name in head)
    lines = "".join("<tr>" + "".join(map(shown, row)) + "</tr>\n" for row in rows)
    return f"<table>\n<thead><tr>{cells}</tr></thead>\n<tbody>\n{lines}</tbody>\n</table>\n"


def shown(cell):
    """A cell: four digits of a fraction."""
    if isinstance(cell, str):
        return f"<td class=text>{escape(cell)}</td>"
    return f"<td>{cell:.4g}</td>" if isinstance(cell, float) else f"<td>{cell}</td>"


def span(pair, unit=""):
    """Two quartiles."""
    return f"{pair[0]:.3g} to {pair[1]:.3g}{unit}"


def tests(rows):
    """Outcomes by test, what did not pass or was skipped, and what was recorded."""
    names = list(dict.fromkeys(row["test"] for row in rows))
    outcomes = ("passed", "failed", "skipped")
    counts = [
        [
            name,
            *(sum(row["test"] == name and row["outcome"] == outcome for row in rows) for outcome in outcomes),
            sum(row["seconds"] for row in rows if row["test"] == name),
        ]
        for name in names
    ]
    text = table(["test", *outcomes, "seconds"], counts)
    for outcome, title in (("failed", "What failed"), ("skipped", "What was skipped")):
        these = [[row["test"], row["case"], row["reason"]] for row in rows if row["outcome"] == outcome]
        if these:
            text += f'<p class="{outcome}">{title}:</p>\n{table(["test", "case", "why"], these)}'
    recorded = [[row["case"], what, value] for row in rows for what, value in row["recorded"].items()]
    return text + "<p>How far the device is from float32 on the CPU:</p>" + table(["case", "what", "value"], recorded)


def throughput(found):
    """A table for each batch."""
    text = (
        f"<p>A random Llama of {found['parameters'] / 1e6:,.3f} million parameters in bfloat16; prompts of "
        f"{found['prompt']} tokens, a canvas of {found['canvas']} in blocks of {found['block']}, one token a step. "
        "Medians, and quartiles in between.</p>\n"
    )
    head = ["side", "seconds", "quartiles", "tokens a second", "times as fast", "quartiles", "tokens of the loop"]
    for batch, run in found["batches"].items():
        rows = [
            [
                side,
                one["seconds"]["median"],
                span(one["seconds"]["quartiles"]),
                one["tokens_per_second"],
                one["ratio"],
                span(one["ratio_quartiles"]),
                f"{one['tokens_of_the_loop']:.0%}",
            ]
            for side, one in run["sides"].items()
        ]
        text += f"<p>Batch {escape(batch)}, {run['turns']} turns:</p>\n{table(head, rows)}"
    return text


def memory(found):
    """Peak and formula, by what is trained."""
    head = ["trained", "weights", "training", "activations", "formula, in all", "measured", "measured / formula"]
    rows = []
    for name, one in found.items():
        parts = one["formula"]
        total = sum(parts.values())
        measured = (
            [one["reason"], ""] if one["peak"] is None else [f"{one['peak'] / 1e6:,.1f} MB", one["peak"] / total]
        )
        rows.append([name, *(f"{value / 1e6:,.1f} MB" for value in [*parts.values(), total]), *measured])
    (first, *_) = found.values()
    return (
        f"<p>{first['rows']} completions in rows of {first['length']} tokens; MB are 1e6 bytes of tensors. The formula's "
        "parts for rollouts and for the rest are left out, as no rollout is run and only tensors are counted.</p>\n"
        + table(head, rows)
    )


def page(found):
    """All of it."""
    said = found["conditions"]
    warning = "" if said["device"] != "cpu" else f'<p class="warning">{CPU[0]}</p>\n<p>{CPU[1]}</p>\n'
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>Lockstitch on {escape(str(said['name']))}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>Lockstitch on {escape(str(said['name']))}</h1>\n{warning}"
        f"{table(['what', ''], [[name, str(value)] for name, value in said.items()])}"
        f"<h2>Tests against the CPU</h2>\n{tests(found['tests'])}"
        f"<h2>Throughput</h2>\n{throughput(found['throughput'])}"
        f"<h2>Peak memory of an optimisation step</h2>\n{memory(found['memory'])}"
        f"<p>All of it took {found['seconds']} s.</p>\n</body>\n</html>\n"
    )
