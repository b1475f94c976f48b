"""Prompts as a model was trained to be asked: through its tokenizer's chat template where there is one.

One rule for sampling, stitching and training: a tokenizer that has a template gives it to texts that ask something, unless
it is said otherwise; text around blanks and canvases of one's own stay as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase as Tokenizer

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Chat:
    """How prompts are put to a model.

    Attributes:
        template: whether texts become conversations.
        system: what a conversation begins with, if it has no such message; None for nothing.
    """

    template: bool = False
    system: str | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer, template: bool | None = None, system: str | None = None) -> "Chat":
        """With the tokenizer's template, if it has one, unless `template` says otherwise.

        Raises `ValueError` for a template that is not there, and for a system prompt that would be ignored.
        """
        there = tokenizer.chat_template is not None
        if not there and (template or system is not None):
            raise ValueError(
                "chat_template and system_prompt need a tokenizer with a chat template, which this one has not"
            )
        if template is False and system is not None:
            raise ValueError(f"system_prompt={system!r} would be ignored with chat_template=False")
        return cls(there if template is None else template, system)

    def messages(self, prompt: str | Messages) -> str | list[dict[str, Any]]:
        """A prompt as a conversation, or the text that it is; `ValueError` for messages that there is no template for."""
        if isinstance(prompt, str):
            if not self.template:
                return prompt
            talk: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
        else:
            if not self.template:
                raise ValueError(
                    "prompts of messages need a chat template: the tokenizer's, and no chat_template=False"
                )
            # A table of rows gives every message every column that one of them has.
            talk = [{name: said for name, said in message.items() if said is not None} for message in prompt]
        begins = [{"role": "system", "content": self.system}] if self.system is not None else []
        return talk if talk and talk[0].get("role") == "system" else [*begins, *talk]

    def encode(self, prompt: str | Messages, tokenizer: Tokenizer) -> list[int]:
        """Token ids of a prompt, up to where the model is to answer."""
        return encode(self.messages(prompt), tokenizer)


def encode(prompt: str | Messages, tokenizer: Tokenizer, **template: Any) -> list[int]:
    """Token ids of a text as it is, without special tokens, or of a conversation in the model's template.

    By default up to where the model is to answer; `template` goes to `apply_chat_template`.

    Raises `ValueError` for messages that the template does not take.
    """
    if isinstance(prompt, str):
        ids: list[int] = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        return ids
    try:
        templated: list[int] = tokenizer.apply_chat_template(
            list(prompt), tokenize=True, return_dict=True, **{"add_generation_prompt": True, **template}
        )["input_ids"]
    except (TemplateError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"the chat template refuses the messages {repr([*prompt])[:200]}: {why}") from error
    return templated
