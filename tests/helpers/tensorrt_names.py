"""Looks up everything in ``tatok_edge.runtime.tensorrt.api`` in the TensorRT that is importable; prints what is not so.

Run as ``python tensorrt_names.py trt|rtx`` in a process of its own: two TensorRTs in one do not mix.
"""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

from tatok_edge.errors import BackendError
from tatok_edge.runtime.tensorrt import api as tensorrt_api
from tatok_edge.runtime.tensorrt import flavour as tensorrt_flavour
from tatok_edge.runtime.tensorrt.api import RTX_ONLY, TRT_ONLY


def problems(flavour: tensorrt_flavour.Flavour) -> tuple[list[str], int]:
    """Names that this TensorRT lacks and methods whose parameters differ, and how many names were looked up."""
    found = []
    count = 0
    absent = TRT_ONLY if flavour.name == "rtx" else RTX_ONLY
    for class_name, kind in vars(tensorrt_api).items():
        if not getattr(kind, "_is_protocol", False) or class_name == "Protocol" or class_name.startswith("_"):
            continue
        real = flavour.api if class_name == "Api" else getattr(flavour.api, class_name, None)
        if real is None:
            found.append(f"{class_name} is missing")
            continue
        members = {**inspect.get_annotations(kind), **vars(kind)}
        for name, member in members.items():
            if (name.startswith("_") and name != "__version__") or (class_name, name) in absent:
                continue
            count += 1
            if not hasattr(real, name):
                found.append(f"{class_name}.{name} is missing")
            elif inspect.isfunction(member) and not inspect.isclass(getattr(real, name)):
                wanted = [parameter for parameter in inspect.signature(member).parameters if parameter != "self"]
                if not any(takes(overload, wanted) for overload in overloads(name, getattr(real, name))):
                    text = (getattr(real, name).__doc__ or "").strip().splitlines()
                    found.append(f"{class_name}.{name} does not take {wanted}: {text[:1]}")
    return found, count


def overloads(name: str, function: Any) -> list[list[tuple[str, bool]]]:
    """Parameters of each overload that pybind11 wrote into the docstring: name, and whether it has a default."""
    result = []
    for line in (function.__doc__ or "").splitlines():
        match = re.fullmatch(rf"(?:\d+\. )?{name}\((.*)\)(?: -> .*)?", line.strip())
        if match and "*args" not in match[1]:
            # A default may hold a comma or colon of its own, inside angle brackets.
            text = re.sub(r"<[^>]*>", "VALUE", match[1])
            parts = re.findall(r"(\w+): [^,=\[]*(?:\[[^\]]*\])?[^,=]*(= ?[^,]*)?", text)
            result.append([(part[0], bool(part[1])) for part in parts if part[0] != "self"])
    return result


def takes(overload: list[tuple[str, bool]], wanted: list[str]) -> bool:
    names = [name for name, _ in overload]
    # TensorRT's own names are not always given; then there are argN, and the count decides.
    same = all(a == b or re.fullmatch(r"arg\d+", a) for a, b in zip(names, wanted, strict=False))
    return same and len(wanted) <= len(names) and all(default for _, default in overload[len(wanted) :])


def objects(flavour: tensorrt_flavour.Flavour) -> list[str]:
    """What can be called without a GPU: subclasses, flags, and the errors where there is no builder."""
    found = []
    messages = tensorrt_flavour.Messages()
    logger: Any = tensorrt_flavour.make_logger(flavour, messages)
    severity = flavour.api.ILogger.Severity
    logger.log(severity.ERROR, "first\nline")
    logger.log(severity.WARNING, "second")
    if messages.problems != ["first line"]:
        found.append(f"the logger kept {messages.problems}")
    shares: list[float] = []
    monitor: Any = tensorrt_flavour.make_monitor(flavour, lambda share: shares.append(share) or len(shares) < 4)
    monitor.phase_start("all", None, 2)
    monitor.phase_start("part", "all", 2)
    went_on = [monitor.step_complete("part", 0), monitor.step_complete("part", 1)]
    monitor.phase_finish("part")
    went_on += [monitor.step_complete("all", 0), monitor.step_complete("all", 1)]
    if shares != [0.25, 0.25, 0.5, 1.0] or went_on != [True, True, True, False]:
        found.append(f"the monitor reported {shares} and {went_on}")
    1 << int(flavour.api.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    if flavour.name == "trt":
        for make in (tensorrt_flavour.make_builder, tensorrt_flavour.make_runtime):
            try:
                make(flavour, logger, tensorrt_flavour.Messages())
                found.append(f"{make.__name__} gave something from a library that gives nothing")
            except BackendError as error:
                if "no NVIDIA driver" not in str(error) or "\n" in str(error):
                    found.append(f"{make.__name__}: {error}")
    return found


if __name__ == "__main__":
    chosen = tensorrt_flavour.find_flavour(sys.argv[1])
    print(f"version {chosen.version} from {chosen.location}")
    lacking, looked_up = problems(chosen)
    for problem in [*lacking, *objects(chosen)]:
        print(f"PROBLEM {problem}")
    print(f"looked up {looked_up}")
