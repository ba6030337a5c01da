"""From pictures and a question, or a chat, to the inputs of a vision-language model, by its own processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hf_cam.doors import PASSING
from hf_cam.errors import ImageError, ModelError, OptionError, TargetError, brief, reason
from hf_cam.request import check_prompt

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
        ModelError: the processor has no tokenizer, no chat template for a chat, or one that leaves out a text.
        OptionError: the chat is none, or has another number of placeholders.
        TargetError: a text is empty, or holds placeholders.
    """
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        raise ModelError(
            "this model writes text, so it needs its whole processor, with the tokenizer; pass "
            "processor=AutoProcessor.from_pretrained(NAME)"
        )
    if getattr(processor, "chat_template", None):
        if chat is None:
            turn = [{"type": "image"}] * pictures + [{"type": "text", "text": question}]
            chat = [{"role": "user", "content": turn}]
        _check_counts(chat, pictures, _placeholder(processor))
        text = _templated(processor, chat)
        begins = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        return Prompt(processor, text, {"add_special_tokens": False} if begins else {})
    if chat is not None:
        raise ModelError("this model's processor has no chat template, so messages= cannot be put to it; pass text=")
    return Prompt(processor, _with_placeholders(processor, question, pictures), {})


def _check_counts(chat: Any, pictures: int, token: str | None) -> None:
    """Refuse a chat that has no question, or placeholders for another number of pictures."""
    texts = _texts_of(check_chat(chat))
    if not texts:
        raise TargetError('the messages hold no question; add an item {"type": "text", "text": ...} to one of them')
    if token and any(token in text for text in texts):
        raise TargetError(
            f"the text holds {token!r}, which stands for a picture and is added for each of them; omit it"
        )
    items = [item for one in chat for item in one["content"] if isinstance(item, Mapping) and item["type"] == "image"]
    if any(item.get(name) is not None for item in items for name in SOURCES):
        raise OptionError("a chat that holds its own pictures is passed in the call: explain(model=..., messages=...)")
    places = len(items)
    if places != pictures:
        raise OptionError(
            f'the messages have {places} items of type "image" for {pictures} picture{"s" * (pictures != 1)}; '
            "each picture needs one"
        )


def _templated(processor: Any, chat: Chat) -> str:
    """A chat as the processor's template writes it.

    Raises:
        ModelError: the template fails, or leaves out what the user or the system says.
    """
    try:
        text: str = processor.apply_chat_template(chat, add_generation_prompt=True)
    except Exception as error:
        raise ModelError(f"the processor's chat template fails: {reason(error)}") from error
    plain = _plain(text)
    for one in _texts_of([one for one in chat if one["role"] != "assistant"]):
        if _plain(one) not in plain:
            raise ModelError(
                f"the processor's chat template leaves out {brief(one)}; write it as a list of items "
                '[{"type": "text", "text": ...}] of the role "user"'
            )
    return text


def _texts_of(chat: Chat) -> list[str]:
    contents = [one["content"] for one in chat]
    return [
        item if isinstance(item, str) else item["text"]
        for content in contents
        for item in ([content] if isinstance(content, str) else content)
        if isinstance(item, str) or item["type"] == "text"
    ]


def _plain(text: str) -> str:
    return "".join(text.split())


def _placeholder(processor: Any) -> str | None:
    """The token that stands for a picture in a text."""
    token = getattr(processor, "image_token", None)
    token = getattr(token, "content", token)
    return token if isinstance(token, str) else None


def _with_placeholders(processor: Any, question: str, pictures: int) -> str:
    """The question with its placeholders; a caller who places them himself has placed all.

    Raises:
        TargetError: he has placed another number.
    """
    token = _placeholder(processor)
    if not token:
        return question
    if (places := question.count(token)) and places != pictures:
        raise TargetError(
            f"the text has {places} placeholders {token!r} for {pictures} picture{'s' * (pictures != 1)}; omit them, "
            "or place one per picture"
        )
    if places:
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


def check_chat(messages: Any) -> Chat:
    """A chat whose items are texts and pictures.

    Raises:
        OptionError: it is not a list of messages as transformers takes them, or holds something else.
        TargetError: a text is empty, or no text.
    """
    if not isinstance(messages, list | tuple) or not all(
        isinstance(one, Mapping) and isinstance(one.get("role"), str) for one in messages
    ):
        raise OptionError(
            'messages must be a list such as [{"role": "user", "content": [{"type": "image", "image": ...}, '
            f'{{"type": "text", "text": ...}}]}}], got {brief(messages)}'
        )
    for one in messages:
        content = one.get("content")
        if isinstance(content, str):
            check_prompt(content)
        elif not isinstance(content, list | tuple):
            raise OptionError(f"the content of a message must be a text or a list of items, got {brief(content)}")
        else:
            for item in content:
                _check_item(item)
    return list(messages)


def _check_item(item: Any) -> None:
    kind = item.get("type") if isinstance(item, Mapping) else None
    if kind == "text":
        check_prompt(item.get("text"))
    elif kind != "image":
        raise OptionError(
            'an item of a message must be {"type": "image", "image": ...} or {"type": "text", "text": ...}, got '
            f"{brief(item) if kind is None else f'type {brief(kind)}'}"
        )


def chat_of(messages: Any) -> tuple[Chat, list[Any]]:
    """A chat with bare placeholders in place of its pictures, and the pictures' sources in its order.

    Raises:
        OptionError: it is not a list of messages as transformers takes them.
        TargetError: a text is empty, or no text.
        ImageError: there is no picture in it, or a placeholder without one.
    """
    pictures: list[Any] = []

    def plain(item: Any) -> Any:
        if item["type"] != "image":
            return item
        source = next((item[name] for name in SOURCES if item.get(name) is not None), None)
        if source is None:
            raise ImageError('a message has an item of type "image" without a picture; add it as "image": ...')
        pictures.append(source)
        return {"type": "image"}

    chat = [
        {
            **one,
            "content": one["content"] if isinstance(one["content"], str) else list(map(plain, one["content"])),
        }
        for one in check_chat(messages)
    ]
    if not pictures:
        raise ImageError('the messages hold no picture; add an item {"type": "image", "image": ...} to one of them')
    return chat, pictures


def _tensors(encoded: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors among what a processor returned."""
    return {name: value for name, value in encoded.items() if isinstance(value, Tensor)}
