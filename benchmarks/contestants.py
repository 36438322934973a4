"""Who runs on fixed work S: one list. A row of ours stands before the peer that it is measured against.

Ours are recipes without `calibrate` (fixed_work.py puts it first) and `export`. A peer is a script in peers/, for
the interpreter of an environment that has its library, and the settings that the script takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Pass = Mapping[str, Mapping[str, Any]]

G64: Mapping[str, Any] = {"bits": 4, "group_size": 64}
MIXED: Mapping[str, Any] = {"average_bits": 4.25, "bits": (3, 4, 8)}
TUNED: Mapping[str, Any] = {"correct": True, "tune": True}
ASYMMETRIC: Mapping[str, Any] = {**G64, "symmetric": False}
BEST: Mapping[str, Any] = {**ASYMMETRIC, **TUNED, "shrinkage": 0.3}


@dataclass(frozen=True)
class Ours:
    """Passes, the dialect that keeps what they make, and the name of the peer's row, if any peer has the method.

    `why` says why its KL is not lower than the peer's, where it is not.
    """

    name: str
    dialect: str
    passes: tuple[Pass, ...]
    peer: str | None = None
    why: str = ""
    samples: int = 64
    """Sequences of 512 tokens to calibrate on: 64, which all peers have, but where the name says more."""


@dataclass(frozen=True)
class Peer:
    """`library` names both the environment and the script, peers/<library>_peer.py. `slow` ones run when asked for."""

    name: str
    library: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    slow: bool = False

    @property
    def script(self) -> str:
        return f"{self.library}_peer.py"

    @property
    def packages(self) -> tuple[str, ...]:
        """Those whose versions are told with the row."""
        known = {"autoround": ("auto-round",), LLMC: (LLMC, CT)}
        return known.get(self.library, (self.library,))


def ours(name: str, dialect: str, *passes: Pass, peer: str | None = None, why: str = "", samples: int = 64) -> Ours:
    return Ours(f"compress {name}", dialect, passes, peer, why, samples)


LLMC = "llmcompressor"
BNB = "bitsandbytes"
CT = "compressed-tensors"

CONTESTANTS: tuple[Ours | Peer, ...] = (
    # NF4 and FP4, blocks of 64
    ours("nf4", BNB, {"nf4": {}}, peer="bitsandbytes NF4", why="the same codes and scales"),
    ours("nf4 inputs", BNB, {"nf4": {"search": "inputs"}}, peer="bitsandbytes NF4"),
    ours("awq onto nf4", BNB, {"awq": {"format": "nf4"}}, peer="bitsandbytes NF4"),
    ours("gptq onto nf4", BNB, {"gptq": {"format": "nf4"}}, peer="bitsandbytes NF4"),
    ours("gptq correct onto nf4", BNB, {"gptq": {"format": "nf4", "correct": True}}, peer="bitsandbytes NF4"),
    ours("gptq correct tune onto nf4", BNB, {"gptq": {"format": "nf4", **TUNED}}, peer="bitsandbytes NF4"),
    Peer("bitsandbytes NF4", BNB, {"quant_type": "nf4"}),
    ours(
        "nf4 double",
        BNB,
        {"nf4": {"double_quant": True}},
        peer="bitsandbytes NF4 double",
        why="the same codes and scales",
    ),
    ours(
        "nf4 inputs double",
        BNB,
        {"nf4": {"search": "inputs", "double_quant": True}},
        peer="bitsandbytes NF4 double",
    ),
    ours(
        "gptq correct tune onto nf4 double",
        BNB,
        {"gptq": {"format": "nf4", "double_quant": True, **TUNED}},
        peer="bitsandbytes NF4 double",
    ),
    Peer("bitsandbytes NF4 double", BNB, {"quant_type": "nf4", "double_quant": True}),
    ours("fp4", BNB, {"nf4": {"table": "fp4"}}, peer="bitsandbytes FP4"),
    ours("fp4 inputs", BNB, {"nf4": {"table": "fp4", "search": "inputs"}}, peer="bitsandbytes FP4"),
    Peer("bitsandbytes FP4", BNB, {"quant_type": "fp4"}),
    # W8A8
    ours(
        "int8 dynamic",
        CT,
        {"int8": {}},
        peer="llm-compressor INT8 dynamic",
        why="a tie: sums in another order change more",
    ),
    ours("int8 dynamic inputs", CT, {"int8": {"search": "inputs"}}, peer="llm-compressor INT8 dynamic"),
    Peer("llm-compressor INT8 dynamic", LLMC, {"method": "rtn", "scheme": "int8"}),
    ours("int8 static", CT, {"int8": {"activations": "static"}}, peer="llm-compressor INT8 static"),
    ours(
        "int8 static minmax",
        CT,
        {"int8": {"activations": "static", "range": "minmax"}},
        peer="llm-compressor INT8 static",
        why="a token's outliers decide: the default is `mse`",
    ),
    Peer("llm-compressor INT8 static", LLMC, {"method": "rtn", "scheme": "int8", "static": True}),
    ours("int8 smooth", CT, {"int8": {"smooth": 0.5}}, peer="llm-compressor INT8 smooth"),
    Peer("llm-compressor INT8 smooth", LLMC, {"method": "rtn", "scheme": "int8", "smooth": 0.5}),
    ours("fp8 dynamic", CT, {"fp8": {}}, peer="llm-compressor FP8 dynamic"),
    Peer("llm-compressor FP8 dynamic", LLMC, {"method": "rtn", "scheme": "fp8"}),
    ours(
        "fp8 static",
        CT,
        {"fp8": {"per": "tensor", "activations": "static"}},
        peer="llm-compressor FP8 static",
        why="scales of weights searched for these alone: see the next row",
    ),
    ours(
        "fp8 static off",
        CT,
        {"fp8": {"per": "tensor", "activations": "static", "search": "off"}},
        peer="llm-compressor FP8 static",
        why="a tie",
    ),
    ours(
        "fp8 static inputs",
        CT,
        {"fp8": {"per": "tensor", "activations": "static", "search": "inputs"}},
        peer="llm-compressor FP8 static",
        why="see above",
    ),
    ours(
        "fp8 static minmax",
        CT,
        {"fp8": {"per": "tensor", "activations": "static", "range": "minmax"}},
        peer="llm-compressor FP8 static",
        why="see above",
    ),
    Peer("llm-compressor FP8 static", LLMC, {"method": "rtn", "scheme": "fp8", "static": True}),
    # Block floats, weights only
    ours("mxfp4", CT, {"mxfp4": {}}, peer="llm-compressor MXFP4"),
    ours("mxfp4 inputs", CT, {"mxfp4": {"search": "inputs"}}, peer="llm-compressor MXFP4"),
    ours("gptq correct tune onto mxfp4", CT, {"gptq": {"format": "mxfp4", **TUNED}}, peer="llm-compressor MXFP4"),
    Peer("llm-compressor MXFP4", LLMC, {"method": "rtn", "scheme": "mxfp4"}),
    ours("nvfp4", CT, {"nvfp4": {}}, peer="llm-compressor NVFP4"),
    ours("nvfp4 inputs", CT, {"nvfp4": {"search": "inputs"}}, peer="llm-compressor NVFP4"),
    ours("gptq correct tune onto nvfp4", CT, {"gptq": {"format": "nvfp4", **TUNED}}, peer="llm-compressor NVFP4"),
    Peer("llm-compressor NVFP4", LLMC, {"method": "rtn", "scheme": "nvfp4"}),
    # The cache alone, the weights untouched
    ours("kv_cache fp8", CT, {"kv_cache": {}}, peer="llm-compressor FP8 cache"),
    ours("kv_cache int8", CT, {"kv_cache": {"dtype": "int8"}}),
    Peer("llm-compressor FP8 cache", LLMC, {"method": "cache"}),
    # Four bits in groups of 64, asymmetric
    ours(
        "rtn asymmetric",
        "awq",
        {"rtn": ASYMMETRIC},
        peer="hqq",
        why="no data, no search; hqq fits 16-bit zero points, which AWQ files cannot hold",
    ),
    ours(
        "rtn asymmetric weights",
        "awq",
        {"rtn": {**ASYMMETRIC, "search": "weights"}},
        peer="hqq",
        why="the least squared error of weights is not that of outputs",
    ),
    ours("rtn asymmetric inputs", "awq", {"rtn": {**ASYMMETRIC, "search": "inputs"}}, peer="hqq"),
    ours("awq", "awq", {"awq": ASYMMETRIC}, peer="GPTQModel AWQ"),
    ours("awq+gptq", "awq", {"awq": ASYMMETRIC}, {"gptq": ASYMMETRIC}, peer="GPTQModel AWQ"),
    ours(
        "awq+gptq correct", "awq", {"awq": ASYMMETRIC}, {"gptq": {**ASYMMETRIC, "correct": True}}, peer="GPTQModel AWQ"
    ),
    Peer("hqq", "hqq"),
    Peer("GPTQModel AWQ", "gptqmodel", {"method": "awq"}, slow=True),
    # Four bits in groups of 64, symmetric
    ours("rtn", "gptq", {"rtn": G64}, peer="llm-compressor RTN"),
    ours(
        "rtn weights",
        "gptq",
        {"rtn": {**G64, "search": "weights"}},
        peer="llm-compressor RTN",
        why="the least squared error of weights is not that of outputs",
    ),
    ours("rtn inputs", "gptq", {"rtn": {**G64, "search": "inputs"}}, peer="llm-compressor RTN"),
    Peer("llm-compressor RTN", LLMC, {"method": "rtn", "scheme": "int4"}),
    ours("gptq", "gptq", {"gptq": G64}, peer="llm-compressor GPTQ"),
    ours("gptq correct", "gptq", {"gptq": {**G64, "correct": True}}, peer="llm-compressor GPTQ"),
    ours("gptq correct tune", "gptq", {"gptq": {**G64, **TUNED}}, peer="AutoRound light"),
    ours("gptq asymmetric correct tune", "gptq", {"gptq": {**ASYMMETRIC, **TUNED}}, peer="AutoRound"),
    ours("gptq asymmetric correct tune shrinkage", "gptq", {"gptq": BEST}, peer="AutoRound"),
    ours(
        "gptq asymmetric correct tune shrinkage, 256 sequences",
        "gptq",
        {"gptq": BEST},
        peer="AutoRound",
        samples=256,
    ),
    ours("gptq end loss", "gptq", {"gptq": {**G64, "end_loss": True}}, peer="llm-compressor GPTQ"),
    ours("gptq correct tune end loss", "gptq", {"gptq": {**G64, **TUNED, "end_loss": True}}, peer="AutoRound light"),
    ours(
        "gptq correct tune end loss in 4 parts",
        "gptq",
        {"gptq": {**G64, **TUNED, "end_loss": True, "end_loss_parts": 4}},
        peer="AutoRound light",
    ),
    ours("mixed gptq", CT, {"mixed": MIXED}, {"gptq": {"group_size": 64}}, peer="llm-compressor GPTQ"),
    Peer("llm-compressor GPTQ", LLMC, {"method": "gptq", "scheme": "int4"}),
    Peer("GPTQModel GPTQ", "gptqmodel", {"method": "gptq"}, slow=True),
    Peer("AutoRound light", "autoround", {"iters": 50, "lr": 5e-3}, slow=True),
    Peer("AutoRound", "autoround", {"iters": 200}, slow=True),
)
