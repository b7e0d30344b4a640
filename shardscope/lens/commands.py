"""What the commands `shardscope export`, `import` and `verify` call."""

from __future__ import annotations

from pathlib import Path

from shardscope.checkpoint import load, save_checkpoint
from shardscope.config import ConfigError


def export_command(checkpoint: str | Path | None, out: str | Path, dtype: str = "float32") -> Path:
    """Write a directory that stock transformers loads."""
    from shardscope.lens.transformers_home import export_pretrained

    folder = export_pretrained(checkpoint, out, dtype)
    print(f"{folder}: load it with AutoModelForCausalLM.from_pretrained and AutoTokenizer.from_pretrained")
    return folder


def import_command(
    path: str | Path, out: str | Path, tokenizer: str | Path | None = None, text: str | Path | None = None
) -> Path:
    """Write a checkpoint from an exported directory or from an original file, with the mapping that was chosen.

    `tokenizer` belongs to an original file; `text`, a file's path or the text itself, decides what is ambiguous in one.
    """
    path, out = Path(path), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not empty; name a new folder")
    if path.is_dir():
        from shardscope.lens.transformers_home import import_pretrained

        model = import_pretrained(path)
        if tokenizer is not None:
            raise ConfigError(f"{path} brings its own tokenizer; leave --tokenizer out")
    else:
        from shardscope.lens.original import import_original

        if tokenizer is None:
            raise ConfigError(
                f"{path} holds no vocabulary; pass --tokenizer with the tokenizer.json published beside it"
            )
        imported = import_original(path, tokenizer, _text(text))
        print("\n".join(imported.report))
        model = imported.model
    save_checkpoint(out, model, notes={"imported_from": path.name})
    print(f"{out}: {model.n_params:,} parameters")
    return out


def verify_command(checkpoint: str | Path | None) -> int:
    """Print the parity certificate; 0 if the homes agree, else 1."""
    from shardscope.lens.parity import verify

    certificate = verify(load(checkpoint))
    print("\n".join(certificate.lines()))
    return 0 if certificate.passed else 1


def _text(text: str | Path | None) -> str | None:
    if text is None:
        return None
    try:
        if Path(text).is_file():
            return Path(text).read_text(encoding="utf-8")
    except OSError:  # a text too long for a path
        pass
    return str(text)
