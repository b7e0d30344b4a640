"""Tells lm-evaluation-harness 0.4.13 that there is a model named `shard`.

`shardscope_lm_eval.pth` imports this module when Python starts, so it must cost nothing: it only watches for the import
of `lm_eval.models`, and the built-in models are registered by then. Later releases read the entry point in the group
`lm_eval.models` themselves; with those it does nothing. Both files are removed with the package.
"""

import sys

NAME, TARGET = "shard", "shardscope.evals.harness:ShardLM"


class Watch:
    """A finder that finds nothing, but runs `register` after `lm_eval.models` has been imported."""

    asking = False

    def find_spec(self, name: str, path: object = None, target: object = None):  # type: ignore[no-untyped-def]
        if name != "lm_eval.models" or self.asking:
            return None
        from importlib.util import find_spec

        self.asking = True  # the other finders, not this one again
        try:
            spec = find_spec(name)
        finally:
            self.asking = False
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module) -> None:  # type: ignore[no-untyped-def]
                run(module)
                # Only now: somebody may have asked for the spec before, without importing anything.
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                register()

            spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


def register() -> None:
    from pathlib import Path

    import lm_eval.api.registry as registry
    import lm_eval.models as models
    from lm_eval.api.registry import model_registry

    sources = (Path(str(module.__file__)).read_text(encoding="utf-8") for module in (registry, models))
    reads_entry_points = any("entry_points(" in source for source in sources)
    if not reads_entry_points and NAME not in model_registry:
        model_registry.register(NAME, target=TARGET)


sys.meta_path.insert(0, Watch())
