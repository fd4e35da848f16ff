"""CLIP's byte-pair tokenizer, made from the merge list that `open_clip_torch` carries as package data.

The package is only located, never imported: importing it needs a torchvision that matches torch.
"""

from __future__ import annotations

import gzip
import html
import importlib.util
import json
import tempfile
import threading
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from lora_ext.protocols import UserError

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"
VOCABULARY_SIZE = 49408
BOS = 49406
EOS = 49407
MERGE_COUNT = VOCABULARY_SIZE - 2 * 256 - 2
_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"
_lock = threading.Lock()

_TYPOGRAPHY = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201a": "'", "\u201b": "'", "\u201c": '"', "\u201d": '"', "\u201e": '"'}
    | {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # full-width forms
    | {"\u3000": " ", "\u2028": "\n", "\u2029": "\n", "\r": "\n"}
    | {"\ufb00": "ff", "\ufb01": "fi", "\ufb02": "fl", "\ufb03": "ffi", "\ufb04": "ffl"}
)


def clean_text(text: str) -> str:
    """What CLIP's tokenizer expects `ftfy.fix_text` to do, for text that is already rightly decoded.

    HTML entities (where there is no tag), curly quotes, ligatures and full-width forms become plain; NFC.
    """
    unescaped = text if "<" in text else html.unescape(text)
    return unicodedata.normalize("NFC", unescaped.translate(_TYPOGRAPHY))


def _bpe_path() -> Path:
    spec = importlib.util.find_spec("open_clip")
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    for folder in folders:
        path = Path(folder) / BPE_FILE
        if path.is_file():
            return path
    raise UserError(
        f"CLIP's vocabulary {BPE_FILE} was not found: it comes with the package open_clip_torch. "
        "Install it with `pip install --no-deps open_clip_torch`."
    )


def byte_alphabet() -> list[str]:
    """The 256 characters that stand for bytes in the vocabulary, in its order (Radford et al. 2019, GPT-2).

    Printable Latin-1 characters stand for themselves; the other bytes get code points from 256 on.
    """
    printable = _printable_bytes()
    return [chr(code) for code in printable] + [chr(256 + index) for index in range(256 - len(printable))]


def _printable_bytes() -> list[int]:
    return [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]


def _alphabet_bytes() -> list[int]:
    """The bytes that the characters of `byte_alphabet` stand for."""
    printable = _printable_bytes()
    return [*printable, *(byte for byte in range(256) if byte not in set(printable))]


@lru_cache(maxsize=1)
def _merges() -> tuple[str, ...]:
    """CLIP's merges ("i n", "t h", …), best first; the file holds more than CLIP uses."""
    with gzip.open(_bpe_path(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    return tuple(lines[1 : 1 + MERGE_COUNT])


def vocabulary() -> dict[str, int]:
    """Token → id, 49408 of them: bytes, bytes at a word's end, merges, and the two special tokens."""
    alphabet = byte_alphabet()
    tokens = [*alphabet, *(character + "</w>" for character in alphabet)]
    tokens += [merge.replace(" ", "") for merge in _merges()]
    tokens += [_BEGIN, _END]
    return {token: index for index, token in enumerate(tokens)}


def token_texts() -> list[str]:
    """The text of each token by its id; `…` stands where more of the word follows, � for a part of a character."""
    byte_of = {character: byte for byte, character in zip(_alphabet_bytes(), byte_alphabet(), strict=True)}
    return [_token_text(token, byte_of) for token in vocabulary()]


def _token_text(token: str, byte_of: dict[str, int]) -> str:
    if token in (_BEGIN, _END):
        return token
    word = token.removesuffix("</w>")
    text = bytes(byte_of[character] for character in word).decode("utf-8", errors="replace")
    return text if word != token else f"{text}…"


def write_tokenizer_folder(folder: Path) -> None:
    """Write the files from which transformers' `CLIPTokenizer.from_pretrained(folder)` loads CLIP-L's tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    special = {"bos_token": _BEGIN, "eos_token": _END, "unk_token": _END, "pad_token": _END}
    settings = {**special, "model_max_length": 77, "do_lower_case": True, "tokenizer_class": "CLIPTokenizer"}
    contents = {
        "vocab.json": json.dumps(vocabulary(), ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "\n".join(_merges()) + "\n",
        "tokenizer_config.json": json.dumps(settings, indent=2),
        "special_tokens_map.json": json.dumps(special, indent=2),
    }
    for name, text in contents.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


@lru_cache(maxsize=1)
def _make_tokenizer() -> CLIPTokenizer:
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory(prefix="lora-workshop-bpe-") as folder:
        write_tokenizer_folder(Path(folder))
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    if getattr(tokenizer, "fix_text", None) is None:  # without ftfy it would strip accents and split at punctuation
        tokenizer.fix_text = clean_text
    tokenizer.model_max_length = int(1e30)  # long captions are cut into chunks by us: no warning about them
    return tokenizer


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP-L's tokenizer (49408 tokens), made once a process; nothing is downloaded and no file stays behind."""
    with _lock:
        return _make_tokenizer()
