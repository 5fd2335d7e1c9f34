"""From messages to token ids through the tokenizer's chat template, with a span for every message.

The template is rendered around placeholders; its text and the contents are encoded apart, the contents without control
tokens. So spans are exact, the ids of a conversation are a prefix of those of any longer one, and no text can pose as
the template: a user who writes `<|im_end|>` has written ten characters. A tokenizer without a template is given
`PLAIN_TEMPLATE`; a model is saved with the template that it was trained with.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from stages.agent.conversation.messages import TAGS, Message, Role
from stages.artifacts import Model
from stages.errors import UserError

PLAIN_TEMPLATE: Final = (
    "{% for message in messages %}{{ message['role'] }}:\n{{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n{% endif %}"
)
"""For base models: each message under its role, closed by the end-of-text token."""
Template = Literal["model", "plain"]
PLACE: Final = "\ue000content\ue001"
PROBE: Final[tuple[Role, ...]] = ("system", "user", "assistant", "tool", "assistant", "tool", "assistant")

_RESPONSE: Final = re.compile("<(?=/?tool_response>)")


@dataclass(frozen=True)
class Span:
    """Where a message lies among the ids: `[start, end)` with its share of the template, `[first, last)` its content.

    `[first, stop)` is what an assistant writes itself: the content and the token that ends the turn.
    """

    role: Role
    start: int
    first: int
    last: int
    stop: int
    end: int


@dataclass(frozen=True)
class Encoded:
    """Token ids of a conversation and the span of each message."""

    ids: list[int]
    spans: list[Span]

    def loss_mask(self) -> list[bool]:
        """True where a token is the assistant's own: the content of its turns and the token that ends each."""
        mask = [False] * len(self.ids)
        for span in self.spans:
            if span.role == "assistant":
                mask[span.first : span.stop] = [True] * (span.stop - span.first)
        return mask


class Renderer:
    """Encodes conversations with the chat template of a fast `transformers` tokenizer.

    `template="plain"` takes `PLAIN_TEMPLATE` even where the tokenizer has one of its own. Raises UserError for a
    template that rewrites earlier turns (one that drops thoughts, for instance), or has no place for what tools say.
    """

    def __init__(self, tokenizer: Any, template: Template = "model") -> None:
        self.tokenizer = tokenizer
        self.template: str = (_own_template(tokenizer) if template == "model" else None) or PLAIN_TEMPLATE
        if self.template == PLAIN_TEMPLATE and not tokenizer.eos_token:
            raise UserError("the tokenizer has no end-of-text token", fix="set eos_token in tokenizer_config.json")
        self._ends: dict[tuple[Role, ...], tuple[str, str]] = {}
        self._native_tools = True
        self._probe()
        self._template_text, self.text, control = _tokenizers(tokenizer, "".join(sum(self._ends.values(), ())))
        after = self._template_text.encode(self._around(PROBE)[1], add_special_tokens=False).ids
        self.stop_id: int = next((i for i in after if i in control), -1)
        """The token that ends an assistant's turn."""
        if self.stop_id < 0:
            raise _unfit("closes the assistant's turn with no special token, so generation could not stop there")

    def encode(self, messages: Sequence[Message], *, open_turn: bool = False) -> Encoded:
        """The ids of `messages`; with `open_turn` they end where the assistant's next turn begins."""
        roles = tuple(message.role for message in messages)
        ids: list[int] = []
        spans: list[Span] = []
        for number, message in enumerate(messages, start=1):
            before, after = self._around(roles[:number])
            start = len(ids)
            ids += self._encode_template(before)
            first = len(ids)
            ids += message.token_ids or self.encode_text(_plain(message))
            last, closing = len(ids), self._encode_template(after)
            ids += closing
            stop = last + closing.index(self.stop_id) + 1 if self.stop_id in closing else last
            spans.append(Span(message.role, start, first, last, stop, len(ids)))
        if open_turn:
            ids += self._encode_template(self._around((*roles, "assistant"))[0])
        return Encoded(ids, spans)

    def encode_text(self, text: str) -> list[int]:
        """The ids of a text that cannot be taken for the template, whatever it says."""
        return self.text.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a turn, from generated ids without the stop token."""
        return self._template_text.decode(list(ids), skip_special_tokens=False)

    @property
    def pad_id(self) -> int:
        """A token to fill rows with: the tokenizer's own for that, else its end of text, else the end of a turn."""
        found = [self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, self.stop_id]
        return next(token for token in found if token is not None)

    def _encode_template(self, text: str) -> list[int]:
        return self._template_text.encode(text, add_special_tokens=False).ids

    def _around(self, roles: tuple[Role, ...]) -> tuple[str, str]:
        """What the template puts before and after the content of the last of `roles`."""
        if roles not in self._ends:
            earlier, whole = self._show(roles[:-1]), self._show(roles)
            new = whole.removeprefix(earlier)
            if not whole.startswith(earlier) or new.count(PLACE) != 1:
                raise _unfit(f"rewrites what came before, or drops the content, where {' → '.join(roles)}")
            before, _, after = new.partition(PLACE)
            self._ends[roles] = before, after
        return self._ends[roles]

    def _show(self, roles: Sequence[Role], *, open_turn: bool = False) -> str:
        if not roles:
            return ""
        messages = [{"role": role, "content": PLACE} for role in roles]
        if not self._native_tools:
            wrapped = {"role": "user", "content": f"<tool_response>\n{PLACE}\n</tool_response>"}
            messages = [wrapped if message["role"] == "tool" else message for message in messages]
        return self.tokenizer.apply_chat_template(
            messages, chat_template=self.template, tokenize=False, add_generation_prompt=open_turn
        )

    def _probe(self) -> None:
        """Try the template on a conversation with tools; where it knows no tools, as a user's messages."""
        from jinja2 import TemplateError

        try:
            self._walk()
        except (TemplateError, UserError):
            self._native_tools = False
            self._ends.clear()
            try:
                self._walk()
            except TemplateError as error:
                raise _unfit(f"refuses a conversation with tools: {error}") from error

    def _walk(self) -> None:
        for number in range(1, len(PROBE) + 1):
            before, _ = self._around(PROBE[:number])
            if PROBE[number - 1] == "assistant":
                opened = self._show(PROBE[: number - 1], open_turn=True)
                if opened != self._show(PROBE[: number - 1]) + before:
                    raise _unfit("opens a turn in another way than it shows one that is written")


def load_renderer(model: Model, template: Template = "model") -> Renderer:
    """The renderer of a model's own tokenizer. Raises UserError when it has no fast one, or an unfit template."""
    from transformers import AutoTokenizer

    return Renderer(AutoTokenizer.from_pretrained(model.path, local_files_only=True), template)


def _own_template(tokenizer: Any) -> str | None:
    """The tokenizer's template; of several by name, the `default` one. Raises UserError where none is called so."""
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(own, dict) and "default" not in own:
        raise UserError(
            f"the tokenizer has the chat templates {', '.join(own)}, and none called default",
            fix="call one of them default in the tokenizer's files, or set template: plain",
        )
    return own["default"] if isinstance(own, dict) else own


def _plain(message: Message) -> str:
    """The content, in which nobody but a template can begin or end what a tool said."""
    return message.content if message.role == "assistant" else _RESPONSE.sub("&lt;", message.content)


def _tokenizers(tokenizer: Any, template_text: str) -> tuple[Any, Any, set[int]]:
    """The tokenizer of the template's text, that of contents, and the ids that only the template may use.

    Those are the special tokens, and what else the template uses of the added ones, the format's own tags aside.
    """
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state |= {"truncation": None, "padding": None}
    tags = {f"<{slash}{tag}>" for tag in TAGS for slash in ("", "/")}
    for token in state["added_tokens"]:
        token["special"] |= token["content"] in template_text and token["content"] not in tags
    whole, text = (Tokenizer.from_str(json.dumps(state)) for _ in range(2))
    text.encode_special_tokens = True
    return whole, text, {token["id"] for token in state["added_tokens"] if token["special"]}


def _unfit(why: str) -> UserError:
    return UserError(f"the chat template {why}", fix="set `template: plain`, and train with it before evaluating")
