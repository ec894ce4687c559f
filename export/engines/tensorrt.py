"""Engines from a model bundle: ``tatok build``.

Each graph is checked (:mod:`.lint`), converted to fp16 on request (:mod:`.precision`), and built with all its profiles
(:mod:`.profiles`) into one engine, stored by :mod:`tatok_edge.runtime.tensorrt.store`. A build announces its next step,
can be interrupted at any time, and leaves a whole engine or none. Existing engines of the same content for the same
target are not built again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import platform
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import BackendError, InputError
from tatok_edge.export.engines.lint import check_graph, load_graph
from tatok_edge.export.engines.profiles import ProfileSet, graph_profiles
from tatok_edge.geometry import PATCH
from tatok_edge.model.bundle import Bundle
from tatok_edge.runtime.tensorrt import flavour as tensorrt_flavour
from tatok_edge.runtime.tensorrt.flavour import Flavour, Messages
from tatok_edge.runtime.tensorrt.manifest import (
    ENGINE_PRECISIONS,
    EngineManifest,
    EnginePrecision,
    PluginRecord,
    Profile,
    ShapeRange,
    read_manifest,
)
from tatok_edge.runtime.tensorrt.store import (
    build_lock,
    cache_folder,
    prepare_folder,
    store_engine,
    stored_engine,
    write_whole,
)

if TYPE_CHECKING:
    import onnx

Say = Callable[[str], None]
Advance = Callable[[str, float], None]
"""Called with the name of a graph and the finished share of its build."""

WORKSPACE_BYTES = 1 << 30
"""GPU memory that a layer may use for scratch while TensorRT chooses its implementation."""
_POLL_SECONDS = 0.1
_START_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ExtraGraph:
    """A graph that is built beside those of the bundle."""

    onnx: bytes
    profiles: tuple[Profile, ...]
    plugin: PluginRecord | None = None
    """The plugin that it needs, registered with TensorRT."""


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine on disk."""

    path: Path
    manifest: EngineManifest
    seconds: float
    """Wall time of the build in seconds; 0 for an engine that existed before."""
    reused: bool
    """Whether the engine existed before."""


# --- all engines of a model -----------------------------------------------------------------------


def build_engines(
    bundle: Bundle,
    flavour: Flavour,
    profiles: ProfileSet,
    *,
    precision: EnginePrecision = "fp16",
    sms: Sequence[str] | None = None,
    folder: Path | None = None,
    pictures: Sequence[NDArray[np.uint8]] | None = None,
    extra: Mapping[str, ExtraGraph] | None = None,
    check_memory: bool = True,
    say: Say = lambda text: None,
    advance: Advance = lambda graph, share: None,
    verbose: bool = False,
) -> list[BuiltEngine]:
    """Builds the missing engines of all graphs of a bundle.

    Args:
        bundle: The model.
        flavour: The TensorRT that builds, see :func:`tatok_edge.runtime.tensorrt.flavour.find_flavour`.
        profiles: Frame sizes and token counts to build for.
        precision: ``"fp32"`` or ``"fp16"``.
        sms: GPU architectures; by default this machine's, see :func:`tensorrt_flavour.target_sms`.
        folder: Where engines are kept; by default the user's cache.
        pictures: RGB, uint8 (H, W, 3), on which fp16 must agree with fp32; by default rendered ones.
        extra: More graphs, by name.
        check_memory: Refuse to start with too little free memory.
        say: Takes one line about the next step.
        advance: Takes the progress of a build.
        verbose: Print all messages of TensorRT.

    Raises:
        InputError: an unknown precision or architecture.
        BundleError: a graph that does not fit TensorRT 10.3.
        BackendError: TensorRT fails, fp16 disagrees, too little memory, or a folder that cannot be written.
    """
    if precision not in ENGINE_PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(ENGINE_PRECISIONS)}, got {precision!r}")
    targets = tensorrt_flavour.target_sms(flavour, sms, tensorrt_flavour.gpu_architecture())
    folder = cache_folder() if folder is None else folder
    sources = bundle.graphs()
    graphs = {name: load_graph(data, name) for name, data in sources.items()}
    for name, graph in graphs.items():
        check_graph(graph, name)
    prepare_folder(folder, 3 * sum(map(len, sources.values())))
    if check_memory:
        check_free_memory(flavour, sum(map(len, sources.values())))
    given = dict(sources)
    agreement: dict[str, Any] | None = None
    if precision == "fp16":
        given, agreement = _convert(bundle, graphs, pictures, say)
    jobs: dict[str, tuple[bytes, bytes, tuple[Profile, ...], PluginRecord | None]] = {
        name: (sources[name], given[name], shapes, None) for name, shapes in graph_profiles(profiles, bundle).items()
    }
    for name, more in (extra or {}).items():
        check_graph(load_graph(more.onnx, name), name)
        jobs[name] = (more.onnx, more.onnx, more.profiles, more.plugin)
    drafts = {
        name: _draft(bundle, flavour, name, source, data, precision, targets, profiles, shapes, plugin, agreement)
        for name, (source, data, shapes, plugin) in jobs.items()
    }
    there = {name: stored_engine(folder, draft) for name, draft in drafts.items()}
    missing = {name: draft for name, draft in drafts.items() if there[name] is None}
    if missing:
        say(_announcement(bundle, flavour, precision, targets, folder, missing))
    built = []
    for name, draft in drafts.items():
        manifest = there[name]
        if manifest is None:
            built.append(_build_one(flavour, draft, jobs[name][1], folder, say, advance, verbose))
        else:
            say(f"{name}: already built")
            built.append(BuiltEngine(folder / draft.file, manifest, 0.0, True))
    return built


def _convert(
    bundle: Bundle, graphs: Mapping[str, onnx.ModelProto], pictures: Sequence[NDArray[np.uint8]] | None, say: Say
) -> tuple[dict[str, bytes], dict[str, Any]]:
    from tatok_edge.export.engines.precision import convert_bundle

    shown = rendered_pictures() if pictures is None else pictures
    say(f"converting to fp16 and comparing the tokens of {len(shown)} pictures with fp32")
    converted, record = convert_bundle(graphs, shown, bundle.levels, bundle.context_width)
    for name, graph in converted.items():
        check_graph(graph, name)
    record["source"] = "rendered" if pictures is None else "given"
    say(f"in fp16, {record['patch_tokens']:.2%} of the patch tokens are those of fp32")
    return {name: graph.SerializeToString() for name, graph in converted.items()}, record


def dtf_graph(
    flavour: Flavour, form: Literal["plugin", "onnx"], tau: float, profiles: ProfileSet, *, depth: int
) -> ExtraGraph:
    """Dynamic Token Filtering as a graph of its own: ``scores`` (B, N, K) to dense tokens, see ``dtf_onnx``.

    Args:
        flavour: The TensorRT that builds; the plugin is registered with it.
        form: One plugin node, or standard operators.
        tau: Share of the information to keep.
        profiles: Frame sizes to build for.
        depth: K, most tokens of a patch.

    Raises:
        InputError: frames with more patches than token filtering takes.
        BackendError: no plugin.
    """
    from tatok_edge.export.engines.dtf_onnx import dtf_model
    from tatok_edge.runtime.cuda.kernels import MAX_PATCHES, DtfLimits
    from tatok_edge.runtime.tensorrt import plugin as tensorrt_plugin

    ranges = []
    for frame in profiles.frames:
        counts = [frame.height[i] // PATCH * (frame.width[i] // PATCH) for i in range(3)]
        if counts[2] > MAX_PATCHES:
            raise InputError(
                f"token filtering takes {MAX_PATCHES} patches per frame, {frame.width[2]}x{frame.height[2]} pixels "
                f"have {counts[2]}: build for smaller frames"
            )
        ranges.append({"scores": ShapeRange(*((frame.batch[i], counts[i], depth) for i in range(3)))})
    plugin = None
    if form == "plugin":
        there = tensorrt_plugin.register(flavour)
        file = str(there.path) if there.path else None
        plugin = PluginRecord(tensorrt_plugin.PLUGIN_NAME, there.version, file, there.sha256)
    model = dtf_model(DtfLimits.make(tau=tau), form=form, depth=depth)
    return ExtraGraph(model.SerializeToString(), tuple(ranges), plugin)


def rendered_pictures() -> list[NDArray[np.uint8]]:
    """Pictures of the rendered camera clip, for a comparison without given pictures."""
    from tatok_edge.sources.synthetic import Scene, render

    return [render(Scene(width=384, height=256, seed=seed), 10 * seed) for seed in range(4)]


def _draft(
    bundle: Bundle,
    flavour: Flavour,
    name: str,
    source: bytes,
    data: bytes,
    precision: str,
    sms: tuple[str, ...],
    profiles: ProfileSet,
    shapes: tuple[Profile, ...],
    plugin: PluginRecord | None,
    agreement: Mapping[str, Any] | None,
) -> EngineManifest:
    """The manifest of an engine, before its bytes are known."""
    notes: dict[str, Any] = {"profiles": dict(profiles.notes), "agreement": agreement}
    if name == "patch_encoder":
        notes["edges"] = list(profiles.tokens)
    return EngineManifest(
        model=bundle.name,
        tag=bundle.tag.hex(),
        graph=name,
        onnx_sha256=hashlib.sha256(source).hexdigest(),
        built_sha256=hashlib.sha256(data).hexdigest(),
        precision=precision,
        flavour=flavour.name,
        version=flavour.version,
        sms=sms,
        profile_set=profiles.tag,
        profiles=shapes,
        plugin=plugin,
        engine_bytes=0,
        engine_sha256="",
        notes=notes,
    )


def _announcement(
    bundle: Bundle,
    flavour: Flavour,
    precision: str,
    sms: Sequence[str],
    folder: Path,
    drafts: Mapping[str, EngineManifest],
) -> str:
    last = _last_seconds(folder, drafts)
    how_long = f"about {max(last, 1):.0f} s, as last time" if last is not None else flavour.facts.build_time
    count = f"{len(drafts)} engine{'s' if len(drafts) > 1 else ''}"
    return (
        f"building {count} of {bundle.name} in {precision} with {flavour.title} for SM {', '.join(sms)} into {folder}: "
        f"{how_long}"
    )


def _last_seconds(folder: Path, drafts: Mapping[str, EngineManifest]) -> float | None:
    """Build time in seconds of the newest engines of these graphs on this machine; None if one was never built."""
    seconds: dict[str, tuple[float, float]] = {}
    for path in folder.glob("*.json"):
        try:
            there, age = read_manifest(path), path.stat().st_mtime
        except (BackendError, OSError):
            continue
        draft = drafts.get(there.graph)
        taken = there.notes.get("seconds")
        if (
            draft is None
            or (there.flavour, there.plugin is None) != (draft.flavour, draft.plugin is None)
            or not isinstance(taken, int | float)
        ):
            continue
        if there.notes.get("machine") == _machine() and age > seconds.get(there.graph, (0.0, 0.0))[0]:
            seconds[there.graph] = (age, float(taken))
    return sum(value for _, value in seconds.values()) if len(seconds) == len(drafts) else None


def _machine() -> str:
    return f"{platform.node()} {platform.machine()} {os.cpu_count()} cores"


def _build_one(
    flavour: Flavour,
    draft: EngineManifest,
    data: bytes,
    folder: Path,
    say: Say,
    advance: Advance,
    verbose: bool,
) -> BuiltEngine:
    path = folder / draft.file
    count = len(draft.profiles)
    say(f"{draft.graph}: {count} profile{'s' if count > 1 else ''}")
    say_waiting = threading.Timer(1.0, say, (f"{draft.graph}: another process is building it, waiting",))
    say_waiting.daemon = True
    say_waiting.start()
    with build_lock(path) as waited:
        say_waiting.cancel()
        there = stored_engine(folder, draft) if waited else None
        if there is not None:
            say(f"{draft.graph}: built by another process")
            return BuiltEngine(path, there, 0.0, True)
        cache = _TimingCache(flavour, draft, folder)
        start = time.perf_counter()
        plan = build_plan(
            flavour,
            data,
            draft.graph,
            draft.profiles,
            draft.sms,
            timing_cache=cache,
            advance=lambda share: advance(draft.graph, share),
            verbose=verbose,
        )
        seconds = time.perf_counter() - start
        notes = {**draft.notes, "seconds": round(seconds, 3), "machine": _machine(), "built_by": _built_by()}
        manifest = dataclasses.replace(
            draft, engine_bytes=len(plan), engine_sha256=hashlib.sha256(plan).hexdigest(), notes=notes
        )
        store_engine(folder, manifest, plan)
        cache.store()
    say(f"{draft.graph}: {len(plan) / 1e6:.1f} MB in {seconds:.1f} s")
    return BuiltEngine(path, manifest, seconds, False)


def _built_by() -> str:
    try:
        return f"tatok-edge {version('tatok-edge')}"
    except PackageNotFoundError:
        return "tatok-edge"


# --- one engine -----------------------------------------------------------------------------------


class _TimingCache:
    """Measured times of tactics, kept beside the engines for the next build with the same TensorRT on the same GPU."""

    def __init__(self, flavour: Flavour, manifest: EngineManifest, folder: Path) -> None:
        self._path: Path | None = None
        if flavour.facts.times_kernels:
            self._path = folder / f"timing-{flavour.name}{flavour.version}-sm{manifest.sms[0].replace('.', '')}.cache"
        self._data = b""
        if self._path is not None and self._path.is_file():
            self._data = self._path.read_bytes()

    def give(self, config: Any) -> None:
        """Hands the cache to a build; TensorRT ignores a cache that does not fit."""
        if self._path is not None:
            config.set_timing_cache(config.create_timing_cache(self._data), ignore_mismatch=False)

    def take(self, config: Any) -> None:
        """Take the cache back, with the additions of the build."""
        if self._path is not None:
            self._data = bytes(config.get_timing_cache().serialize())

    def store(self) -> None:
        """Writes the cache; a failure is ignored."""
        if self._path is not None and self._data:
            with contextlib.suppress(OSError):
                write_whole(self._path, self._data)


def build_plan(
    flavour: Flavour,
    data: bytes,
    name: str,
    profiles: Sequence[Profile],
    sms: Sequence[str],
    *,
    timing_cache: _TimingCache | None = None,
    advance: Callable[[float], None] = lambda share: None,
    verbose: bool = False,
) -> bytes:
    """Builds one engine and returns its bytes.

    The build runs in its own thread, so Ctrl-C ends it at its next step.

    Args:
        flavour: The TensorRT that builds.
        data: Serialised ONNX.
        name: Name of the graph, for messages.
        profiles: Shapes to build for.
        sms: GPU architectures, see :func:`tensorrt_flavour.target_sms`.
        timing_cache: Used and extended if given.
        advance: Takes the finished share; called in the calling thread.
        verbose: Print all messages of TensorRT.

    Raises:
        BackendError: TensorRT refuses the graph, a profile or a target, or fails.
        KeyboardInterrupt: interrupted; nothing is left behind.
    """
    cancelled = threading.Event()
    progress = [0.0]
    results: list[bytes | BaseException] = []

    def step(share: float) -> bool:
        progress[0] = share
        return not cancelled.is_set()

    def work() -> None:
        try:
            results.append(_build(flavour, data, name, profiles, sms, timing_cache, step, verbose))
        except BaseException as error:
            # TensorRT's objects must be freed here, in the thread that made them, and not with the traceback.
            traceback.clear_frames(error.__traceback__)
            results.append(error)

    thread = threading.Thread(target=work, name=f"build {name}", daemon=True)
    try:
        thread.start()
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
            advance(progress[0])
    except BaseException:
        cancelled.set()
        # Ctrl-C may come inside start(), when the thread is about to run. It has to end before the process does:
        # TensorRT would crash in a thread that outlives the interpreter.
        deadline = time.monotonic() + _START_SECONDS
        while not thread.is_alive() and not results and time.monotonic() < deadline:
            time.sleep(0.01)
        if thread.is_alive():
            thread.join()
        raise
    result = results[0]
    if isinstance(result, BaseException):
        raise result
    return result


def _build(
    flavour: Flavour,
    data: bytes,
    name: str,
    profiles: Sequence[Profile],
    sms: Sequence[str],
    timing_cache: _TimingCache | None,
    step: Callable[[float], bool],
    verbose: bool,
) -> bytes:
    messages = Messages()
    logger = tensorrt_flavour.make_logger(flavour, messages, verbose=verbose)
    builder = tensorrt_flavour.make_builder(flavour, logger, messages)
    network = tensorrt_flavour.make_network(flavour, builder)
    parser = tensorrt_flavour.make_parser(flavour, network, logger)
    if not parser.parse(data):
        error = parser.get_error(0) if parser.num_errors else None
        where = f" at node {error.node_name()!r}, operator {error.node_operator()}" if error else ""
        why = " ".join(error.desc().split()) if error else messages.first("it does not say why")
        raise BackendError(f"{flavour.title} cannot parse graph {name!r}{where}: {why}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(flavour.api.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    # fp32 means fp32, in islands too: TF32 has the precision of fp16.
    config.clear_flag(flavour.api.BuilderFlag.TF32)
    names = [network.get_input(index).name for index in range(network.num_inputs)]
    for number, shapes in enumerate(profiles):
        if set(shapes) != set(names):
            raise BackendError(
                f"graph {name!r} has inputs {', '.join(names)}, profile {number} names {', '.join(shapes)}"
            )
        profile = builder.create_optimization_profile()
        for tensor, ranges in shapes.items():
            profile.set_shape(tensor, ranges.min, ranges.opt, ranges.max)
        if config.add_optimization_profile(profile) < 0:
            raise BackendError(
                f"{flavour.title} refuses profile {number} of graph {name!r}: {messages.first('no reason')}"
            )
    tensorrt_flavour.set_targets(flavour, config, sms)
    monitor = tensorrt_flavour.make_monitor(flavour, step)
    config.progress_monitor = monitor
    if timing_cache is not None:
        timing_cache.give(config)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        why = messages.first("it does not say why")
        hint = "; close what else uses the GPU, or build for smaller frames" if "memory" in why.lower() else ""
        raise BackendError(f"{flavour.title} cannot build graph {name!r}: {why}{hint}")
    if timing_cache is not None:
        timing_cache.take(config)
    return bytes(plan)


# --- memory ---------------------------------------------------------------------------------------


def check_free_memory(flavour: Flavour, graph_bytes: int) -> None:
    """Refuses a build that would run the machine out of memory.

    Args:
        flavour: The TensorRT that builds.
        graph_bytes: Size of all graphs.

    Raises:
        BackendError: too little memory is free; the message says how much.
    """
    needed = flavour.facts.build_bytes + 8 * graph_bytes
    free = available_memory()
    if free is not None and free < needed:
        raise BackendError(
            f"building with {flavour.title} needs about {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free: "
            "end other programs or add swap space (--ignore-memory tries anyway)"
        )


def available_memory(root: Path = Path("/")) -> int | None:
    """Free bytes without swapping, within the limit of a container; None if unknown."""
    found = []
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key in ("MemAvailable", "SwapFree"):
                found.append(int(value.split()[0]) * 1024)
    except (OSError, ValueError, IndexError):
        return None
    if not found:
        return None
    total = sum(found)
    try:
        limit = (root / "sys/fs/cgroup/memory.max").read_text().strip()
        used = int((root / "sys/fs/cgroup/memory.current").read_text())
        if limit != "max":
            total = min(total, max(int(limit) - used, 0))
    except (OSError, ValueError):
        pass
    return total
