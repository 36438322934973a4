"""Which tokens are answers: judged by transformers' mask on the same templates with `{% generation %}` written in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from compress.formats.errors import InputError
from compress.passes.forward.texts.chats import Message, answers, learned

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|end|>", "<|eot|>", "<turn>"]
# As families write them. [[ ]] stand where the judge's copy says `generation`; a plain template says nothing there.
TEMPLATES = {
    "ChatML": """{% for m in messages %}<|im_start|>{{ m.role }}{{ '\n' }}"""
    """{% if m.role == 'assistant' %}[[{{ m.content }}<|im_end|>]]{% else %}{{ m.content }}<|im_end|>{% endif %}"""
    """{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}""",
    "Llama 2": """{% for m in messages %}{% if m.role == 'assistant' %}[[ {{ m.content | trim }} </s>]]"""
    """{% else %}<s>[INST] {{ m.content | trim }} [/INST]{% endif %}{% endfor %}""",
    "Gemma": """<s>{% for m in messages %}{% if m.role == 'assistant' %}<turn>model{{ '\n' }}"""
    """[[{{ m.content | trim }}<|eot|>]]{{ '\n' }}{% else %}<turn>{{ m.role }}{{ '\n' }}{{ m.content | trim }}<|eot|>"""
    """{{ '\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}<turn>model{{ '\n' }}{% endif %}""",
    "Phi 3": """{% for m in messages %}<|{{ m.role }}|>{{ '\n' }}{% if m.role == 'assistant' %}"""
    """[[{{ m.content }}<|end|>]]{% else %}{{ m.content }}<|end|>{% endif %}{{ '\n' }}{% endfor %}"""
    """{% if add_generation_prompt %}<|assistant|>{{ '\n' }}{% else %}{{ eos_token }}{% endif %}""",
    "Qwen 3": """{% for m in messages %}<|im_start|>{{ m.role }}{{ '\n' }}{% if m.role == 'assistant' %}"""
    """[[{% if loop.last %}<think>{{ '\n' }}{% if '</think>' in m.content %}"""
    """{{ m.content.split('</think>')[0].split('<think>')[-1].strip() }}{% endif %}{{ '\n' }}</think>{{ '\n\n' }}"""
    """{% endif %}{{ m.content.split('</think>')[-1].lstrip('\n') }}<|im_end|>]]{% else %}{{ m.content }}<|im_end|>"""
    """{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}""",
    "DeepSeek R1": """<s>{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>"""
    """[[{{ m.content.split('</think>')[-1] }}</s>]]{% else %}<|user|>{{ m.content }}{% endif %}{% endfor %}"""
    """{% if add_generation_prompt %}<|assistant|><think>{{ '\n' }}{% endif %}""",
    "Alpaca": """{% for m in messages %}{% if m.role == 'assistant' %}### Response:{{ '\n' }}"""
    """[[{{ m.content }}{{ '\n\n' }}]]{% else %}### Instruction:{{ '\n' }}{{ m.content }}{{ '\n\n' }}{% endif %}"""
    """{% endfor %}{% if add_generation_prompt %}### Response:{{ '\n' }}{% endif %}""",
    "no mark at all": """{% for m in messages %}{% if m.role == 'assistant' %}[[{{ m.content }}]]"""
    """{% else %}{{ m.content }}{{ '\n' }}{% endif %}{% endfor %}""",
    "an end that only the last answer has": """{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}"""
    """[[{{ m.content }}{% if loop.last %}</s>{% endif %}]]{% else %}{{ m.content }}{% endif %}{% endfor %}"""
    """{% if add_generation_prompt %}<|assistant|>{% endif %}""",
}  # fmt: skip
# What users and models may write: the templates' own marks, each other's words, white space, what is several tokens.
PIECES = [
    "Answer0Here", "yes", "yes.", " ", "\n", "<|im_end|>", "<|im_start|>assistant\n", "<|im_start|>", "</s>", "[/INST]",
    "<|end|>\n", "<|assistant|>", "<|eot|>", "<turn>model\n", "### Response:\n", "assistant", "é", "日本", "🦊", "<th",
    "{{ m.content }}", "{% generation %}", "<|", "the quick brown fox",
]  # fmt: skip


def tokenizer_of(pre_tokenizer: Any) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE(byte_fallback=True))
    made.pre_tokenizer = pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(  # type: ignore[call-arg]
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([piece * 3 for piece in PIECES], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


TOKENIZERS = {
    "bytes": tokenizer_of(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "words with a space in front": tokenizer_of(pre_tokenizers.Metaspace()),
}


def ours(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    text, spans = answers(tokenizer, messages)
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return found.input_ids, list(learned(found.offset_mapping, spans))


def theirs(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    found = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    mask = found["assistant_masks"]
    for token in range(1, len(mask)):  # where several tokens begin with the last character, it names only the first
        same = found.token_to_chars(token).start == found.token_to_chars(token - 1).start
        mask[token] |= same and mask[token - 1]
    return found["input_ids"], mask


def plain(template: str) -> str:
    return template.replace("[[", "").replace("]]", "")


def marked(template: str) -> str:
    return template.replace("[[", "{% generation %}").replace("]]", "{% endgeneration %}")


def chat(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[turn % 2], "content": content} for turn, content in enumerate(contents)]


TEXTS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join)
CHATS = st.lists(st.tuples(TEXTS, TEXTS.filter(str.strip)), min_size=1, max_size=3)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", TEMPLATES)
@settings(deadline=None, max_examples=60)
@given(turns=CHATS)
def test_answers_are_those_that_the_template_would_mark(name: str, kind: str, turns: list[tuple[str, str]]) -> None:
    tokenizer, messages = TOKENIZERS[kind], chat(*(content for turn in turns for content in turn))
    tokenizer.chat_template = plain(TEMPLATES[name])
    told = ours(tokenizer, messages)
    tokenizer.chat_template = marked(TEMPLATES[name])
    assert told == theirs(tokenizer, messages) == ours(tokenizer, messages)


def said(template: str, messages: Sequence[Message], kind: str = "bytes") -> list[str]:
    """The characters of the answers."""
    tokenizer = TOKENIZERS[kind]
    tokenizer.chat_template = template
    text, spans = answers(tokenizer, messages)
    return [text[start:end] for start, end in spans]


def test_marks_within_a_macro_are_where_the_answers_are() -> None:
    inner = TEMPLATES["ChatML"].partition("%}")[2].partition("{% endfor %}")
    macro = (
        "{% macro write(m) %}" + inner[0] + "{% endmacro %}{% for m in messages %}{{ write(m) }}{% endfor %}" + inner[2]
    )
    messages = chat("hello", "yes", "and?", "no")
    assert said(plain(macro), messages) == said(marked(macro), messages) == ["yes<|im_end|>", "no<|im_end|>"]
    TOKENIZERS["bytes"].chat_template = marked(macro)
    _, mask = theirs(TOKENIZERS["bytes"], messages)
    assert mask != ours(TOKENIZERS["bytes"], messages)[1]  # or believing them would do


def test_a_template_may_mark_less_than_the_whole_answer() -> None:
    template = TEMPLATES["ChatML"].replace(
        "[[{{ m.content }}", "{{ m.content.split('|')[0] }}|[[{{ m.content.split('|')[1] }}"
    )
    assert said(marked(template), chat("hello", "thought|yes")) == ["yes<|im_end|>"]


def test_what_the_template_does_with_an_answer_does_not_matter() -> None:
    assert said(plain(TEMPLATES["Gemma"]), chat("yes", " \n yes\n", "yes", "yes")) == ["yes<|eot|>", "yes<|eot|>"]
    thought = chat("q", "<think>\nhm\n</think>\n\nyes", "q", "<think>\nhm\n</think>\n\nyes")
    expected = ["yes<|im_end|>", "<think>\nhm\n</think>\n\nyes<|im_end|>"]
    assert said(plain(TEMPLATES["Qwen 3"]), thought) == expected
    assert said(plain(TEMPLATES["DeepSeek R1"]), thought) == ["\n\nyes</s>", "\n\nyes</s>"]


CALLS = (
    "{% for m in messages %}<|{{ m.role }}|>{% for part in m.content if part.text %}{{ part.text }}{% endfor %}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_calls_of_tools_and_content_in_parts_are_answers() -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "now", "arguments": {}}}]}
    parts = [{"type": "text", "text": "It is "}, {"type": "text", "text": "noon."}]
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "What time is it?"}]},
        {**call, "content": []}, {"role": "tool", "content": [{"type": "text", "text": "12:00"}]},
        {"role": "assistant", "content": parts},
    ]  # fmt: skip
    expected = ['<call>{"name": "now", "arguments": {}}</call><|end|>', "It is noon.<|end|>"]
    assert said(CALLS, messages) == expected
    words = CALLS.replace("{% for part in m.content if part.text %}{{ part.text }}{% endfor %}", "{{ m.content }}")
    plainly = [{"role": "user", "content": "Q"}, call, {"role": "tool", "content": "T"}, *chat("Q", "It is noon.")[1:]]
    assert said(words, plainly) == expected


STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate!') }}"
    "{% endif %}{% endfor %}{% if messages[-1].role == 'user' and not add_generation_prompt %}"
    "{{ raise_exception('ends with a question') }}{% endif %}" + plain(TEMPLATES["ChatML"])
)


def test_a_template_that_is_strict_about_turns_is_asked_for_no_others() -> None:
    assert said(STRICT, chat("q", "yes", "q", "no")) == ["yes<|im_end|>", "no<|im_end|>"]
    first = [{"role": "assistant", "content": "Hello."}, *chat("q", "yes")]  # no engine would ask for the first one
    assert said(plain(TEMPLATES["ChatML"]), first) == ["Hello.<|im_end|>", "yes<|im_end|>"]
    twice = [*chat("q", "yes"), {"role": "assistant", "content": "yes"}]
    assert said(plain(TEMPLATES["ChatML"]), twice) == ["yes<|im_end|>", "yes<|im_end|>"]


@pytest.mark.parametrize("messages", [chat("hello"), chat("hello", " \n"), chat("hello", "", "yes", ""), []])
def test_a_chat_without_an_answer_is_refused(messages: list[Message]) -> None:
    with pytest.raises(InputError, match="the chat has no answer") as caught:
        said(plain(TEMPLATES["ChatML"]), messages)
    assert "answers_only: false" in caught.value.hint


def test_an_empty_answer_among_others_is_not_learned() -> None:
    assert said(plain(TEMPLATES["ChatML"]), chat("q", "", "q", "yes")) == ["yes<|im_end|>"]


def test_a_template_that_does_not_tell_is_refused_unless_it_marks_answers() -> None:
    template = TEMPLATES["ChatML"].replace("[[{{ m.content }}", "[[{{ m.content | upper }}")
    with pytest.raises(InputError, match=r"messages\[1\]: the chat template does not tell") as caught:
        said(plain(template), chat("hello", "yes"))
    assert "{% generation %}" in caught.value.hint
    assert said(marked(template), chat("hello", "yes")) == ["YES<|im_end|>"]


def test_white_space_that_a_tokenizer_trims_is_what_lies_around_it() -> None:
    offsets = [(0, 3), (4, 4), (4, 7), (8, 8), (8, 9)]  # "the", " ", " fox", " ", "!" of a tokenizer that trims
    assert list(learned(offsets, [(4, 9)])) == [0, 0, 1, 1, 1]
    assert list(learned(offsets, [(0, 3), (8, 9)])) == [1, 0, 0, 0, 1]
    assert list(learned([], [])) == []
