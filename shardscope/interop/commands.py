"""What the commands `shardscope export`, `import` and `verify` call."""

from __future__ import annotations

from pathlib import Path

from shardscope.checkpoint import load, save_checkpoint
from shardscope.config import ConfigError


def export_command(checkpoint: str | Path | None, out: str | Path, dtype: str = "float32") -> Path:
    """Write a directory that stock transformers loads, and say what fewer bits do to the text."""
    from shardscope.interop.huggingface import export_pretrained

    folder = export_pretrained(checkpoint, out, dtype, report=print)
    print(f"{folder}: load it with AutoModelForCausalLM.from_pretrained and AutoTokenizer.from_pretrained")
    return folder


def import_command(
    path: str | Path,
    out: str | Path,
    tokenizer: str | Path | None = None,
    text: str | Path | None = None,
    bos: str | None = None,
) -> Path:
    """Write a checkpoint from an exported directory or from an original file, with the mapping that was chosen.

    The others belong to an original file: its `tokenizer`, a file of `text` that decides what is ambiguous in it, and
    the token that begins a document, `bos`, where that is not `<|endoftext|>`. Raises ConfigError.
    """
    path, out = Path(path), Path(out)
    if not path.exists():
        raise ConfigError(f"{path}: no such file or directory")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not empty; name a new folder")
    if path.is_dir():
        from shardscope.interop.huggingface import import_pretrained

        for flag, given in (("--tokenizer", tokenizer), ("--text", text), ("--bos", bos)):
            if given is not None:
                raise ConfigError(f"{path} is an exported directory, which needs no {flag}; leave it out")
        model = import_pretrained(path)
    else:
        from shardscope.interop.original import import_original

        if tokenizer is None:
            raise ConfigError(
                f"{path} holds no vocabulary; pass --tokenizer with the tokenizer.json published beside it"
            )
        imported = import_original(path, tokenizer, None if text is None else _read_text(Path(text)), bos)
        print("\n".join(imported.report))
        model = imported.model
    save_checkpoint(out, model, notes={"imported_from": path.name})
    print(f"{out}: {model.n_params:,} parameters")
    return out


def verify_command(checkpoint: str | Path | None) -> int:
    """Print the parity certificate; 0 if the homes agree, else 1."""
    from shardscope.interop.parity import verify

    certificate = verify(load(checkpoint, device="cpu"))
    print("\n".join(certificate.lines()))
    return 0 if certificate.passed else 1


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read as UTF-8 text ({error}); --text takes the path of a text file"
        ) from None
