"""The same weights in TransformerLens and transformers, and the way in for the original file.

Names are imported on first use, because each module brings a heavy optional dependency.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shardscope.interop.bridge import to_transformer_lens
    from shardscope.interop.huggingface import export_pretrained, import_pretrained, to_transformers
    from shardscope.interop.original import import_original
    from shardscope.interop.parity import verify

_MODULES = {
    "to_transformer_lens": "bridge",
    "import_original": "original",
    "verify": "parity",
    "export_pretrained": "huggingface",
    "import_pretrained": "huggingface",
    "to_transformers": "huggingface",
}

__all__ = [
    "export_pretrained",
    "import_original",
    "import_pretrained",
    "to_transformer_lens",
    "to_transformers",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
