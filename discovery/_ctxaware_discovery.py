"""Lets `lm_eval` find ctxaware's tasks and models with no flag, until it reads entry points by itself.

Installed at the top of site-packages and imported at start-up through `ctxaware_discovery.pth`. It adds one finder
that waits for the harness's task index and its list of models and otherwise does nothing; names that the harness
already knows (through the entry points `lm_eval.tasks` and `lm_eval.models`, `--include_path` or a user's own) are
left alone. CTXAWARE_NO_DISCOVERY=1 switches it off.
"""

import os
import sys

MODELS = {  # imported when the harness is asked for one
    "ctxaware": "ctxaware.harness.model:ContextLM",
    "ctxaware-vllm": "ctxaware.harness.vllm:ContextVLLM",
}


def _extend_tasks(module):
    from pathlib import Path

    if not hasattr(getattr(module, "TaskIndex", None), "build"):
        return  # another release of the harness: better not found than in the way
    build = module.TaskIndex.build
    builtin = Path(module.__file__).parent

    def build_with_ctxaware(paths, **kwargs):
        paths = [Path(p) for p in paths]
        index = build(paths, **kwargs)
        if builtin in paths:  # not when the user asked for their own folders only
            from ctxaware.harness.paths import tasks_folder

            for name, entry in build([tasks_folder()], **kwargs).items():
                index.setdefault(name, entry)
        return index

    module.TaskIndex.build = staticmethod(build_with_ctxaware)


def _extend_models(module):
    try:
        from lm_eval.api.registry import model_registry

        for name, target in MODELS.items():
            if name not in model_registry:
                model_registry.register(name, target=target)
    except (ImportError, AttributeError, TypeError):
        return  # another release of the harness: better not found than in the way


class _Finder:
    """Extends each of the harness's modules the moment it is imported."""

    waiting = {"lm_eval.tasks._index": _extend_tasks, "lm_eval.models": _extend_models}  # noqa: RUF012

    @classmethod
    def find_spec(cls, name, path=None, module=None):
        extend = cls.waiting.pop(name, None)  # the module is found by whoever finds it without us
        if extend is None:
            return None
        if not cls.waiting:
            sys.meta_path.remove(cls)
        import importlib.util

        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        exec_module = spec.loader.exec_module

        def exec_and_extend(module):
            exec_module(module)
            extend(module)

        spec.loader.exec_module = exec_and_extend
        return spec


if not os.environ.get("CTXAWARE_NO_DISCOVERY"):
    sys.meta_path.insert(0, _Finder)
