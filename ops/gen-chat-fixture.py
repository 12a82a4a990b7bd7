#!/usr/bin/env python3
"""Writes crates/aha-model/tests/fixtures/chat_turns/: conversations as transformers makes tokens of them.

Set up as `check-export.py` says; transformers is enough, torch isn't needed. A tokenizer of single bytes and a few
merges is made here, so the ids are those of the templates and of the borders between turns, not of a large
vocabulary. For each template and conversation the file holds the text and the ids of `apply_chat_template`; for
the template with `{% generation %}` tags also the mask of `return_assistant_tokens_mask`; for the others, ids and
text with a generation prompt after each beginning of the conversation, which is where a sampler would begin.
"""

import json
import pathlib

from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "crates/aha-model/tests/fixtures/chat_turns"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' "
    "+ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# As Qwen2.5-Instruct writes calls of tools and their results, without its list of tools.
TOOLS = """{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "assistant" and message.tool_calls %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
TAGGED = """{%- for message in messages %}
    {%- if message['role'] == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
            {{- message['content'] + '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
# As Qwen3 and DeepSeek-R1 do, thoughts of earlier turns are left out.
FORGETS = """{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and not loop.last and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
TEMPLATES = {"chatml": CHATML, "tools": TOOLS, "tagged": TAGGED, "forgets": FORGETS}


def say(role, content, **more):
    """One message."""
    return {"role": role, "content": content, **more}


CALL = [{"type": "function", "function": {"name": "add", "arguments": {"b": 2, "a": [1, "é"]}}}]
CONVERSATIONS = {
    "two turns": [say("user", "2+2?"), say("assistant", "It is 4."), say("user", "And 3+3?"), say("assistant", "6.")],
    "system first": [
        say("system", "Be brief."), say("user", "Où?"), say("assistant", "Là-bas."), say("user", "Thanks!"),
    ],
    "thoughts": [
        say("user", "1+1?"), say("assistant", "<think>easy</think>\n2"),
        say("user", "2+3?"), say("assistant", "<think>2+3=5</think>\n5"),
    ],
    "a tool": [
        say("user", "Add 1 and 2."), say("assistant", "", tool_calls=CALL), say("tool", "3"), say("tool", "done"),
        say("assistant", "It is 3."),
    ],
}


def tokenizer():
    """Bytes and a few merges, with ChatML's special tokens."""
    inner = Tokenizer(BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=SPECIAL, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [message["content"] for messages in CONVERSATIONS.values() for message in messages]
    inner.train_from_iterator(texts * 3 + ["user", "assistant", "system"] * 5, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )


def case(made, name, messages):
    """What transformers makes of a conversation with a template."""
    made.chat_template = TEMPLATES[name]

    def ids(messages, **more):
        return made.apply_chat_template(messages, tokenize=True, return_dict=True, **more)

    whole = ids(messages, return_assistant_tokens_mask=name == "tagged")
    turns = [idx for idx, message in enumerate(messages) if message["role"] == "assistant"]
    found = {
        "text": made.apply_chat_template(messages, tokenize=False),
        "ids": whole["input_ids"],
        "prompts": {
            str(idx): ids(messages[:idx], add_generation_prompt=True)["input_ids"] for idx in turns
        },
    }
    if name == "tagged":
        found["mask"] = whole["assistant_masks"]
    return found


def main():
    """Writes the folder."""
    made = tokenizer()
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "tokenizer.json").write_text(json.dumps(json.loads(made.backend_tokenizer.to_str()), ensure_ascii=False))
    settings = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (FOLDER / "tokenizer_config.json").write_text(json.dumps(settings) + "\n")
    cases = []
    for name in TEMPLATES:
        for title, messages in CONVERSATIONS.items():
            cases.append({"template": name, "conversation": title, **case(made, name, messages)})
    content = {"templates": TEMPLATES, "conversations": CONVERSATIONS, "cases": cases}
    (FOLDER / "cases.json").write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
