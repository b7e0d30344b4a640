"""One sentence for a package that a command needs and this environment lacks."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires

# Imported under another name than they are installed by.
DISTRIBUTIONS = {"cudnn": "nvidia-cudnn-frontend", "PIL": "pillow"}


def missing_package(error: ImportError) -> str:
    """What is missing, and the extra to install where one of ours would bring it. Raises our own broken imports."""
    module = (error.name or "").partition(".")[0]
    if module in ("", "shardscope") or not isinstance(error, ModuleNotFoundError):
        if module in ("", "shardscope"):
            raise error
        return f"the package {module} is installed but cannot be used ({error}); reinstall it, or another version"
    extra = extra_with(DISTRIBUTIONS.get(module, module))
    if extra is None:
        return f"this command needs the package {module}, which is not installed here; install it"
    return f"this command needs the package {module}; pip install 'shardscope[{extra}]'"


def extra_with(distribution: str) -> str | None:
    """The narrowest of our extras that lists the distribution itself."""
    try:
        lines = requires("shardscope") or []
    except PackageNotFoundError:  # a source tree on the path
        return None
    extras: dict[str, list[str]] = {}
    for line in lines:
        named = re.match(r"[\w.-]+", line)
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", line)
        if named and extra:
            extras.setdefault(extra[1], []).append(_normal(named[0]))
    bringing = [extra for extra, names in extras.items() if _normal(distribution) in names]
    return min(bringing, key=lambda extra: len(extras[extra]), default=None)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
