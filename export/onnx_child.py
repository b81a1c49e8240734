"""The child process of `onnx_trial`: opens a file of unknown origin, or infers its shapes, under limits.

A file of 100 bytes can ask for a shape of 10**10 entries, and neither onnx nor ONNX Runtime stops at that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable


def limit(data_bytes: int, seconds: int) -> None:
    """Bound what this process may take; on systems without such limits the parent's timeout is all there is."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (data_bytes, data_bytes))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def open_file(path: str, bounded: Callable[[], None]) -> None:
    """Open a file; a refusal in words is as good as success, but lack of memory is not.

    Raises:
        MemoryError: ONNX Runtime says that memory ran out.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    bounded()
    try:
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as fault:
        if "alloc" in str(fault):
            raise MemoryError(str(fault).splitlines()[0]) from fault


def infer_shapes(path: str, bounded: Callable[[], None]) -> None:
    """Read a model from standard input, unfold its functions, infer, and write it to standard output."""
    content = sys.stdin.buffer.read()
    import onnx
    from onnx import inliner, shape_inference

    bounded()
    model = onnx.ModelProto.FromString(content)
    if model.functions:
        model = inliner.inline_local_functions(model)
    sys.stdout.buffer.write(shape_inference.infer_shapes(model, data_prop=True).SerializeToString())


TASKS: dict[str, Callable[[str, Callable[[], None]], None]] = {"open": open_file, "shapes": infer_shapes}

if __name__ == "__main__":
    TASKS[sys.argv[1]](sys.argv[2], lambda: limit(int(sys.argv[3]), int(sys.argv[4])))
