"""Imports point one way, and heavy libraries stay where they belong (held by reading the source)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "streamer"

LAYERS: tuple[frozenset[str], ...] = (
    frozenset(
        {
            "streamer.addresses",
            "streamer.errors",
            "streamer.sequence",
            "streamer.terminal",
            "streamer.types",
        }
    ),
    frozenset({"streamer.config", "streamer.load_config", "streamer.manifest", "streamer.messages"}),
    frozenset(),  # pure stages and backends: whatever is named in no other layer
    frozenset({"streamer.pipeline", "streamer.kafka"}),
    frozenset(
        {
            "streamer.assignment",
            "streamer.outcome",
            "streamer.partition",
            "streamer.service",
            "streamer.states",
        }
    ),
    frozenset(
        {
            "streamer.adaptive",
            "streamer.cli",
            "streamer.command_group",
            "streamer.dash",
            "streamer.dashboard",
            "streamer.demo",
            "streamer.detector",
            "streamer.doctor",
            "streamer.evidence",
            "streamer.evidence_page",
            "streamer.fetch",
            "streamer.files",
            "streamer.hls",
            "streamer.live_report",
            "streamer.mpd",
            "streamer.mpd_segments",
            "streamer.network",
            "streamer.publish",
            "streamer.record",
            "streamer.score",
            "streamer.sources",
            "streamer.stream",
            "streamer.watch",
        }
    ),
    frozenset({"streamer.__main__"}),
)
STAGES, PEOPLE = 2, 5

ONLY_IN = {
    "av": (
        "streamer.decode",
        "streamer.nvdec",
        "streamer.picture",
        "streamer.record",
        "streamer.segment",
        "streamer.training.compress",
        "streamer.video_stream",
    ),
    "aiohttp": ("streamer.endpoints", "streamer.fetch"),
    "aiokafka": ("streamer.kafka", "streamer.service"),
    "defusedxml": ("streamer.mpd",),
    "m3u8": ("streamer.hls",),
    "sse_starlette": ("streamer.dashboard",),
    "starlette": ("streamer.dashboard",),
    "typer": ("streamer.cli", "streamer.command_group", "streamer.training.cli"),
    "opentelemetry": ("streamer.tracing",),
    "matplotlib": ("streamer.svg", "streamer.evidence_page", "streamer.live_report", "streamer.training"),
    "rich": (
        *LAYERS[PEOPLE],
        "streamer.training.bar",
        "streamer.training.progress",
        "streamer.training.cli",
    ),
    "uvicorn": ("streamer.dashboard",),
}
"""Library -> modules that may import it at all."""

LAZY = (
    "torch",
    "torchvision",
    "tensorrt",
    "torch_tensorrt",
    "openvino",
    "onnxruntime",
    "dlib",
    "nncf",
    "onnx",
    "opentelemetry",
)
"""Imported inside functions only, or at the top of the module that wraps them."""

WRAPPERS = ("streamer.backends.", "streamer.gpu.", "streamer.models.", "streamer.training.")


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def imports(tree: ast.AST, module: str, *, top_level: bool = False) -> Iterator[str]:
    """Full names that a module imports; top_level: when it is imported, not inside functions."""
    for node in ast.iter_child_nodes(tree):
        if top_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if top_level and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute here"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from imports(node, module, top_level=top_level)


def within(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def layer_of(name: str) -> int:
    """Layer of a module, or of what is imported from one."""
    if name.count(".") == 0 or name == "streamer.__version__":
        return 0
    for index, rooms in enumerate(LAYERS):
        if any(within(name, room) for room in rooms):
            return index
    return STAGES


def test_imports_point_down() -> None:
    upwards = [
        f"{module} (layer {own}) imports {name} (layer {layer_of(name)})"
        for module, tree in MODULES.items()
        for own in [layer_of(module) if module != "streamer" else PEOPLE]  # it offers them all, lazily
        for name in imports(tree, module)
        if within(name, "streamer") and layer_of(name) > own
    ]
    assert upwards == []


def test_libraries_stay_in_their_rooms() -> None:
    strays = [
        f"{module} imports {name}"
        for module, tree in MODULES.items()
        for name in imports(tree, module)
        if (rooms := ONLY_IN.get(name.split(".")[0])) and not any(within(module, room) for room in rooms)
    ]
    assert strays == []


def test_heavy_libraries_are_imported_late() -> None:
    early = [
        f"{module} imports {name} at its top"
        for module, tree in MODULES.items()
        if not module.startswith(WRAPPERS)
        for name in imports(tree, module, top_level=True)
        if name.split(".")[0] in LAZY
    ]
    assert early == []


def test_serving_never_imports_training() -> None:
    trainers = [
        f"{module} imports {name}"
        for module, tree in MODULES.items()
        if not within(module, "streamer.training") and module != "streamer.cli"  # of its commands
        for name in imports(tree, module)
        if within(name, "streamer.training")
    ]
    assert trainers == []


def test_the_reader_of_imports_reads() -> None:
    source = "import av\nfrom streamer.cli import app\ndef f():\n    import torch\nclass C:\n    import dlib"
    tree = ast.parse(source)
    assert set(imports(tree, "m")) == {"av", "streamer.cli.app", "torch", "dlib"}
    assert set(imports(tree, "m", top_level=True)) == {"av", "streamer.cli.app", "dlib"}


def test_the_command_line_starts_without_heavy_libraries() -> None:
    heavy = [*LAZY, "av", "aiokafka", "cv2", "numpy"]
    code = f"import sys, streamer.cli; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
