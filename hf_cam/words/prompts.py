"""From pictures and a question, or a chat, to the inputs of a vision-language model, by its own processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hf_cam.doors import PASSING
from hf_cam.errors import ImageError, ModelError, OptionError, brief, reason

Chat = list[dict[str, Any]]
SOURCES = ("image", "url", "path", "base64")
"""Keys under which a chat's items of type "image" hold the picture."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """A question about pictures, as the processor takes it.

    Args:
        processor: Of the model; it has a tokenizer.
        text: The question, with the placeholders of the pictures.
        options: Further arguments of the processor.
    """

    processor: Any
    text: str
    options: Mapping[str, Any]

    def __call__(self, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
        """The model's inputs for pictures, on the CPU.

        Raises:
            ModelError: the processor fails.
        """
        try:
            return _tensors(self.processor(text=[self.text], images=[*pictures], return_tensors="pt", **self.options))
        except PASSING:
            raise
        except Exception as error:  # a processor may raise anything
            raise ModelError(f"the processor cannot prepare the picture and the text: {reason(error)}") from error


def prompt_of(processor: Any, question: str, pictures: int, chat: Chat | None = None) -> Prompt:
    """The prompt for a question about so many pictures, or for a chat with as many placeholders.

    It is a chat of one turn where the processor has a chat template. Otherwise the placeholders of the pictures, if the
    processor has one and does not add them itself, precede the question.

    Raises:
        ModelError: the processor has no tokenizer, or no chat template for a chat.
    """
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        raise ModelError(
            "this model writes text, so it needs its whole processor, with the tokenizer; pass "
            "processor=AutoProcessor.from_pretrained(NAME)"
        )
    if getattr(processor, "chat_template", None):
        turn = [{"type": "image"}] * pictures + [{"type": "text", "text": question}]
        try:
            text = processor.apply_chat_template(
                chat or [{"role": "user", "content": turn}], add_generation_prompt=True
            )
        except Exception as error:
            raise ModelError(f"the processor's chat template fails: {reason(error)}") from error
        begins = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        return Prompt(processor, text, {"add_special_tokens": False} if begins else {})
    if chat is not None:
        raise ModelError("this model's processor has no chat template, so messages= cannot be put to it; pass text=")
    return Prompt(processor, _with_placeholders(processor, question, pictures), {})


def _with_placeholders(processor: Any, question: str, pictures: int) -> str:
    token = getattr(processor, "image_token", None)
    token = getattr(token, "content", token)
    if not isinstance(token, str) or token in question:
        return question
    if _adds_placeholders(processor, question, token):
        return question
    return f"{token * pictures}{question}" if token.startswith("<") else f"{token * pictures} {question}"


def _adds_placeholders(processor: Any, question: str, token: str) -> bool:
    """Whether a processor writes the pictures' placeholders into a text that has none."""
    try:
        made = processor(text=[question], images=[Image.new("RGB", (48, 32))], return_tensors="pt")
        ids = torch.as_tensor(made["input_ids"])
    except Exception:  # noqa: BLE001 - it misses the placeholder
        return False
    return bool((ids == processor.tokenizer.convert_tokens_to_ids(token)).any())


def chat_of(messages: Any) -> tuple[Chat, list[Any]]:
    """A chat with bare placeholders in place of its pictures, and the pictures' sources in its order.

    Raises:
        OptionError: it is not a list of messages as transformers takes them.
        ImageError: there is no picture in it, or a placeholder without one.
    """
    if not isinstance(messages, list | tuple) or not all(
        isinstance(one, Mapping) and "role" in one for one in messages
    ):
        raise OptionError(
            'messages must be a list such as [{"role": "user", "content": [{"type": "image", "image": ...}, '
            f'{{"type": "text", "text": ...}}]}}], got {brief(messages)}'
        )
    pictures: list[Any] = []

    def plain(item: Any) -> Any:
        if not isinstance(item, Mapping) or item.get("type") != "image":
            return item
        source = next((item[name] for name in SOURCES if item.get(name) is not None), None)
        if source is None:
            raise ImageError('a message has an item of type "image" without a picture; add it as "image": ...')
        pictures.append(source)
        return {"type": "image"}

    chat = [
        {
            **one,
            "content": list(map(plain, one["content"]))
            if isinstance(one.get("content"), list | tuple)
            else one.get("content"),
        }
        for one in messages
    ]
    if not pictures:
        raise ImageError('the messages hold no picture; add an item {"type": "image", "image": ...} to one of them')
    return chat, pictures


def _tensors(encoded: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors among what a processor returned."""
    return {name: value for name, value in encoded.items() if isinstance(value, Tensor)}
