"""Linear layers that engines compute as one."""

from __future__ import annotations

from collections.abc import Mapping

JOINED: Mapping[str, tuple[str, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""The joined layer's name → the names of its parts. vLLM joins them, and looks settings up by the joined name."""
