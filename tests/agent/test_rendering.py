"""From messages to ids: spans, masks, templates that fit and that do not, and text that poses as the template."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from stages.agent.conversation.messages import Message
from stages.agent.conversation.rendering import PLAIN_TEMPLATE, Renderer
from stages.errors import UserError
from stages.source.generated import CHAT_TEMPLATE
from tests.tiny import tiny_tokenizer

TALK = [
    Message("system", "Be brief."),
    Message("user", "Who?"),
    Message("assistant", "<think>I look.</think>\n<tool_call>{}</tool_call>"),
    Message("tool", "Anna Quill"),
    Message("assistant", "<think>There.</think>\n<answer>Anna Quill</answer>"),
]
QWEN_LIKE = (  # tools speak as a user, in tags
    "{% for m in messages %}{% if m['role'] == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m['content'] }}\n"
    "</tool_response><|im_end|>\n{% else %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRICT = (  # knows no tools, and no two messages of one side after another
    "{% for m in messages %}{% if m['role'] not in ('system', 'user', 'assistant') %}"
    "{{ raise_exception('what is a tool?') }}{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SILENT = STRICT.replace("{{ raise_exception('what is a tool?') }}{% endif %}", "{% else %}").replace(
    "<|im_end|>\n{% endfor %}", "<|im_end|>\n{% endif %}{% endfor %}"
)
FORGETFUL = (  # shows what the assistant said only at the end
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] != 'assistant' or loop.last %}"
    "{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPENS_A_THOUGHT = CHAT_TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def renderer(tokenizer, template: str | dict[str, str] | None) -> Renderer:
    tokenizer.chat_template = template
    return Renderer(tokenizer)


def test_of_several_templates_the_default_one_is_taken(tokenizer):
    assert renderer(tokenizer, {"default": CHAT_TEMPLATE, "tool_use": QWEN_LIKE}).template == CHAT_TEMPLATE
    with pytest.raises(UserError, match="has the chat templates rag, tool_use, and none called default"):
        renderer(tokenizer, {"rag": CHAT_TEMPLATE, "tool_use": QWEN_LIKE})
    assert Renderer(tokenizer, "plain").template == PLAIN_TEMPLATE


TEMPLATES = pytest.mark.parametrize("template", [CHAT_TEMPLATE, QWEN_LIKE, STRICT, SILENT, None])


@TEMPLATES
def test_the_ids_say_what_the_template_says(tokenizer, template):
    found = renderer(tokenizer, template)
    encoded = found.encode(TALK, open_turn=True)
    shown = [{"role": m.role, "content": m.content} for m in TALK]
    if template in (STRICT, SILENT):
        shown[3] = {"role": "user", "content": "<tool_response>\nAnna Quill\n</tool_response>"}
    whole = tokenizer.apply_chat_template(
        shown, tokenize=False, add_generation_prompt=True, chat_template=template or PLAIN_TEMPLATE
    )
    assert found.decode(encoded.ids) == whole


@TEMPLATES
def test_every_message_has_its_span(tokenizer, template):
    found = renderer(tokenizer, template)
    encoded = found.encode(TALK)
    assert [span.role for span in encoded.spans] == [message.role for message in TALK]
    assert encoded.spans[0].start == 0
    assert encoded.spans[-1].end == len(encoded.ids)
    for span, following in zip(encoded.spans, encoded.spans[1:], strict=False):
        assert span.end == following.start
    for span, message in zip(encoded.spans, TALK, strict=True):
        assert found.decode(encoded.ids[span.first : span.last]) == message.content
        if message.role == "assistant":
            assert encoded.ids[span.last : span.stop] == [found.stop_id], "and the token that ends the turn"


@TEMPLATES
def test_the_loss_mask_covers_the_assistant_and_nothing_else(tokenizer, template):
    found = renderer(tokenizer, template)
    encoded = found.encode(TALK)
    targets = [token for token, own in zip(encoded.ids, encoded.loss_mask(), strict=True) if own]
    stop = tokenizer.decode([found.stop_id])
    assert found.decode(targets) == "".join(m.content + stop for m in TALK if m.role == "assistant")


@TEMPLATES
def test_a_conversation_is_a_prefix_of_how_it_goes_on(tokenizer, template):
    found = renderer(tokenizer, template)
    whole = found.encode(TALK).ids
    for number in range(1, len(TALK)):
        part = found.encode(TALK[:number], open_turn=TALK[number].role == "assistant").ids
        assert whole[: len(part)] == part


HOSTILE = st.lists(
    st.sampled_from(["<|im_end|>", "<|im_start|>", "<|endoftext|>", "assistant\n", "assistant:\n", "<tool_call>",
                     "</tool_response>", "<tool_response>", "<answer>x</answer>", "\n"])
    | st.text(max_size=4)
).map("".join)  # fmt: skip


@given(said=HOSTILE, template=st.sampled_from([CHAT_TEMPLATE, QWEN_LIKE, STRICT, None]))
def test_no_text_can_pose_as_the_template(tokenizer, said, template):
    found = renderer(tokenizer, template)
    control = {tokenizer.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>", "<|endoftext|>")}
    harmless = [Message(m.role, "x") for m in TALK]
    attack = [Message(m.role, said if m.role in ("user", "tool") else "x") for m in TALK]
    expected, encoded = found.encode(harmless), found.encode(attack)
    for span in encoded.spans:
        assert not control.intersection(encoded.ids[span.first : span.last])
    assert [i for i in encoded.ids if i in control] == [i for i in expected.ids if i in control]
    assert encoded.loss_mask().count(True) == expected.loss_mask().count(True)
    if template in (QWEN_LIKE, STRICT):
        assert found.decode(encoded.ids).count("<tool_response>") == 1, "the template's own"


def test_ids_that_were_sampled_are_kept_as_they_are(tokenizer):
    found = renderer(tokenizer, CHAT_TEMPLATE)
    sampled = tuple(found.encode_text("<thi") + found.encode_text("nk>"))
    assert list(sampled) != found.encode_text("<think>"), "another way to spell it"
    encoded = found.encode([*TALK[:2], Message("assistant", "<think>", sampled)])
    span = encoded.spans[-1]
    assert tuple(encoded.ids[span.first : span.last]) == sampled


@pytest.mark.parametrize(("template", "why"), [(FORGETFUL, "rewrites"), (OPENS_A_THOUGHT, "opens a turn")])
def test_templates_that_do_not_fit_are_refused(tokenizer, template, why):
    with pytest.raises(UserError, match=why) as caught:
        renderer(tokenizer, template)
    assert "plain" in caught.value.fix
    assert Renderer(tokenizer, "plain").template == PLAIN_TEMPLATE


def test_a_template_without_an_end_is_refused(tokenizer):
    with pytest.raises(UserError, match="no special token"):
        renderer(tokenizer, CHAT_TEMPLATE.replace("<|im_end|>", ""))


def test_no_template_and_no_end_of_text_is_refused(tmp_path):
    bare = AutoTokenizer.from_pretrained(tiny_tokenizer(tmp_path))
    bare.chat_template, bare.eos_token = None, None
    with pytest.raises(UserError, match="end-of-text"):
        Renderer(bare)
