"""The same weights in TransformerLens and transformers, and the way in for the original file.

Names are imported on first use: each home brings its own heavy guest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shardscope.lens.bridge import to_transformer_lens
    from shardscope.lens.commands import export_command, import_command, verify_command
    from shardscope.lens.original import import_original
    from shardscope.lens.parity import verify
    from shardscope.lens.transformers_home import export_pretrained, import_pretrained, to_transformers

_HOMES = {
    "to_transformer_lens": "bridge",
    "export_command": "commands",
    "import_command": "commands",
    "verify_command": "commands",
    "import_original": "original",
    "verify": "parity",
    "export_pretrained": "transformers_home",
    "import_pretrained": "transformers_home",
    "to_transformers": "transformers_home",
}

__all__ = [
    "export_command",
    "export_pretrained",
    "import_command",
    "import_original",
    "import_pretrained",
    "to_transformer_lens",
    "to_transformers",
    "verify",
    "verify_command",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
