"""What a Reasoning Gym worker runs: the library's own scorer on one answer.

Only `reasoning_gym_task.py` loads this, into processes that can be killed: some of the scorers parse an answer as an
expression or try it out, and importing the library takes seconds.
"""

import ast

from reasoning_gym.factory import get_score_answer_fn


def score(item: tuple[str, str, str | None, str | None]) -> float:
    """The score of an answer in [0, 1].

    Args:
        item: question, metadata as a Python literal, gold answer, and the answer to score.
    """
    question, literal, gold, answer = item
    metadata = ast.literal_eval(literal)
    entry = {"question": question, "answer": gold, "metadata": metadata}
    return float(get_score_answer_fn(metadata["source_dataset"])(answer, entry))
