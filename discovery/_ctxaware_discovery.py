"""Lets `lm_eval` find ctxaware's tasks without `--include_path`, until it reads entry points by itself.

Installed at the top of site-packages and imported at start-up through `ctxaware_discovery.pth`.
It adds one finder that waits for `lm_eval.tasks._index` and otherwise does nothing; names that the
harness already knows (through the entry point `lm_eval.tasks`, `--include_path` or a task of the
user's own) are left alone. CTXAWARE_NO_DISCOVERY=1 switches it off.
"""

import os
import sys


class _Finder:
    """Patches the task index the moment it is imported."""

    target = "lm_eval.tasks._index"

    @classmethod
    def find_spec(cls, name, path=None, module=None):
        if name != cls.target:
            return None
        sys.meta_path.remove(cls)  # the module is found by whoever finds it without us
        import importlib.util

        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        exec_module = spec.loader.exec_module

        def exec_and_extend(module):
            exec_module(module)
            _extend(module)

        spec.loader.exec_module = exec_and_extend
        return spec


def _extend(module):
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


if not os.environ.get("CTXAWARE_NO_DISCOVERY"):
    sys.meta_path.insert(0, _Finder)
