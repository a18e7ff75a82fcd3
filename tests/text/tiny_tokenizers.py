"""Small tokenizers in the formats of well-known models, written as a model's folder has them."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

CORPUS = [
    "It was a dark and stormy night, and the rain fell in torrents.",
    "It is a truth universally acknowledged, that a single man wants a wife.",
    "def f(x):\n    return x + 1  # naïve café",
    "你好,世界。 Привет, мир! 🙂 said she; 42 times 1,000 makes 42000.",
] * 3

WORDS = Regex(r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+")


def llama3(folder: Path) -> Path:
    """Byte-level BPE; a template puts BOS before the text."""
    tokenizer = _byte_level(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    _put_bos_before(tokenizer, "<|begin_of_text|>")
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    return _save(folder, tokenizer, {**names, "tokenizer_class": "PreTrainedTokenizerFast"})


def qwen(folder: Path) -> Path:
    """Byte-level BPE without BOS; more special tokens, and some that are not special."""
    tokenizer = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    return _save(
        folder,
        tokenizer,
        {
            "add_bos_token": False,
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


def llama2(folder: Path, **config: object) -> Path:
    """SentencePiece style: a space is written ▁ and put before the text; bytes as fallback."""
    tokenizer = _sentencepiece()
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    _put_bos_before(tokenizer, "<s>")
    bos = {"__type": "AddedToken", "content": "<s>", "normalized": False}
    names = {"bos_token": bos, "eos_token": "</s>", "unk_token": "<unk>"}
    return _save(folder, tokenizer, {**names, **config})


def mistral(folder: Path) -> Path:
    """As llama2, but a pre-tokenizer puts the space, and only before the text's beginning."""
    tokenizer = _sentencepiece()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    _put_bos_before(tokenizer, "<s>")
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return _save(folder, tokenizer, {**names, "tokenizer_class": "PreTrainedTokenizerFast"})


FORMATS = {"llama3": llama3, "qwen": qwen, "llama2": llama2, "mistral": mistral}


def _byte_level(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(WORDS, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return tokenizer


def _sentencepiece() -> Tokenizer:
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    alphabet = sorted(set("".join(CORPUS[:3]).replace(" ", "▁")))
    trained.train_from_iterator(
        CORPUS[:3], BpeTrainer(vocab_size=200, initial_alphabet=alphabet, limit_alphabet=60)
    )
    model = json.loads(trained.to_str())["model"]
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    vocab = {piece: i for i, piece in enumerate([*first, *pieces])}
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", left=1),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in first[:3]])
    return tokenizer


def _put_bos_before(tokenizer: Tokenizer, bos: str) -> None:
    tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos} $B",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )


def _save(folder: Path, tokenizer: Tokenizer, config: dict[str, object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
