"""The small model's tokenizer: a byte-level BPE trained on our own sentences, written as transformers reads it."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from cope_model.corpus import sentences

END_OF_TEXT, IM_START, IM_END, IMAGE, VIDEO = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END, IMAGE, VIDEO)  # ids 0 to 4, in this order
VOCAB_SIZE = 2048
CHAT_TEMPLATE = Path(__file__).parent / "data" / "chat_template.jinja"


def train_tokenizer() -> Tokenizer:
    """Train the BPE; the corpus and its order are fixed, so the result is too.

    Raises:
        RuntimeError: the corpus is too small for `VOCAB_SIZE` tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(), trainer)
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise RuntimeError(f"the corpus gives {tokenizer.get_vocab_size()} tokens, not {VOCAB_SIZE}")
    return tokenizer


def chat_template(default_system: str | None = None) -> str:
    """Our ChatML template.

    Args:
        default_system: what the system says where the messages do not begin with it; None is nothing.
    """
    template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    if default_system is None:
        return template
    return (
        "{%- if not messages or messages[0]['role'] != 'system' -%}\n"
        f"{{{{- '<|im_start|>system\\n{default_system}<|im_end|>\\n' -}}}}\n{{%- endif -%}}\n{template}"
    )


def write_tokenizer(directory: Path, *, vocab_size: int = VOCAB_SIZE) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`.

    Args:
        directory: where to; must exist.
        vocab_size: tokens to fill the vocabulary up to. The fillers never come out of text, but make any id that an
            untrained model of that size samples decodable.
    """
    document = json.loads(train_tokenizer().to_str())
    vocabulary = document["model"]["vocab"]
    for token in range(len(vocabulary), vocab_size):
        vocabulary[f"\u0120token{token}"] = token  # U+0120 is a space in byte-level BPE
    text = json.dumps(document, ensure_ascii=False, indent=None if vocab_size > VOCAB_SIZE else 1)
    (directory / "tokenizer.json").write_text(text, encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": IM_END,
        "pad_token": END_OF_TEXT,
        "additional_special_tokens": [IM_START, IMAGE, VIDEO],
        "model_max_length": 32768,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (directory / "chat_template.jinja").write_bytes(CHAT_TEMPLATE.read_bytes())
