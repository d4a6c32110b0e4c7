"""Opens networks of ONNX files, and weights as their authors published them; runs no code in them.

A file is read once: its digest is of the bytes that run, so ONNX weights beside it are refused.
"""

import hashlib
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipmill.metadata.keys import redacted
from clipmill.metadata.storage import open_uri
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.extras import install, missing
from clipmill.pipeline.stage import Worker

# Shapes: N rows, B rows of a call, H x W pixels, S side of a square.

LARGEST = 2**31  # bytes: a protobuf holds no more
PICTURES, PICTURES_ON_GPU, VECTORS = 4, 32, 64  # of a call: on a CPU more pictures take longer each
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
KERAS, HDF5 = (".h5", ".keras", ".zip"), b"\x89HDF"  # names, and first bytes whatever the name
TO_ONNX = "convert it: python -m tf2onnx.convert --keras FILE --output FILE.onnx"
ONE_FILE = "save it as one file: onnx.save(onnx.load(FILE), NEW, save_as_external_data=False)"
ADVICE = {  # words of onnxruntime's errors, and what to do
    "xternal data": ONE_FILE,
    "model_path must not be empty": ONE_FILE,
    "not a registered function/op": "export it without custom operators",
    "No Op registered": "export it without custom operators",
    "opset": "export it with a lower opset_version, or pip install --upgrade onnxruntime",
    "IR version": "save it with a lower ir_version, or pip install --upgrade onnxruntime",
}
RGB = NDArray[np.uint8]  # (H, W, 3)


class Port:
    """An input or output of a network; a size that varies is None."""

    def __init__(self, port: Any) -> None:
        self.name, self.dtype = port.name, port.type
        self.shape = tuple(n if isinstance(n, int) else None for n in port.shape)  # rows first


class Network:
    """A network with one input; it is called with as many rows as fit, the last ones padded."""

    def __init__(self, session: Any, uri: str, sha256: str, on_gpu: bool) -> None:
        self.session, self.uri, self.sha256 = session, uri, sha256
        self.inputs = [*map(Port, session.get_inputs())]
        self.outputs = [*map(Port, session.get_outputs())]
        if len(self.inputs) != 1 or self.input.dtype not in TYPES:
            names = ", ".join(f"{port.name!r} of {port.dtype}" for port in self.inputs)
            do = "export a network of one input: tensor(float), tensor(float16) or tensor(uint8)"
            raise StageError(f"a network that reads {names}", redacted(uri), do)
        pictures = PICTURES_ON_GPU if on_gpu else PICTURES
        self.reads_pictures = len(self.input.shape) == 4
        self.rows = self.input.shape[0] or (pictures if self.reads_pictures else VECTORS)

    @property
    def input(self) -> Port:
        return self.inputs[0]

    def __call__(self, input_N: NDArray[Any], outputs: list[str]) -> list[NDArray[Any]]:
        """Returns (N, …) of each named output."""
        parts: list[list[NDArray[Any]]] = [[] for _ in outputs]
        for start in range(0, len(input_N), self.rows):
            some = input_N[start : start + self.rows].astype(TYPES[self.input.dtype], copy=False)
            padded_B = some
            if len(some) < self.rows:
                padded_B = np.zeros((self.rows, *some.shape[1:]), some.dtype)
                padded_B[: len(some)] = some
            for part, value in zip(parts, self._run(padded_B, outputs), strict=True):
                part.append(value[: len(some)])
        return [np.concatenate(part) if part else np.empty((0, 1), np.float32) for part in parts]

    def _run(self, padded_B: NDArray[Any], outputs: list[str]) -> list[NDArray[Any]]:
        try:
            answers: list[Any] = self.session.run(outputs, {self.input.name: padded_B})
        except Exception as error:  # onnxruntime has no common base of its errors
            shape = ", ".join(map(str, padded_B.shape[1:]))
            raise StageError(
                f"a network that does not run on rows of ({shape}): {_words(error)}",
                redacted(self.uri),
                "`clipmill doctor --onnx FILE` says what it reads",
            ) from None
        for name, answer in zip(outputs, answers, strict=True):
            if getattr(answer, "shape", ())[:1] != (self.rows,) or answer.dtype.kind not in "biuf":
                found = f"an output {name!r} that is not numbers for each of {self.rows} rows"
                raise StageError(found, redacted(self.uri), "name another, or export it without")
        return answers


def open_network(uri: str, worker: Worker, name: str = "") -> Network:
    """Opens a file on the worker's device, and pins its digest; StageError where it is unfit."""
    network = from_bytes(read(uri), uri, worker)
    worker.pin(name or redacted(uri), network.sha256)
    return network


def in_package(module: str, file: str) -> str:
    """Returns the path of a package's file without importing the package, or RecipeError."""
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise missing(module, f"its weights, {file}")
    return str(Path(spec.submodule_search_locations[0], file))


def look_at(uri: str) -> None:
    """Raises StageError where `file` names no file, or one that is plainly no ONNX file."""
    store, path = open_uri(uri)
    info, where = store.get_file_info(path), "key `file`"
    if not info.is_file:
        raise StageError(f"no file '{redacted(uri)}'", where, "copy the weights there, or mend it")
    if info.size >= LARGEST:
        found = f"'{redacted(uri)}' has {info.size / 2**30:.1f} GiB, an ONNX file less than 2"
        raise StageError(found, where, "export it in float16, or as a smaller network")
    with store.open_input_file(path) as file:
        head = file.read(4)
    if head == HDF5 or path.endswith(KERAS):
        raise StageError(f"'{redacted(uri)}' is a file of Keras", where, TO_ONNX)


def read(uri: str) -> bytes:
    """Returns the bytes of a file that `look_at` has looked at."""
    look_at(uri)
    store, path = open_uri(uri)
    with store.open_input_file(path) as file:
        body: bytes = file.read()
    return body


def from_bytes(body: bytes, uri: str, worker: Worker) -> Network:
    """Opens a network on the worker's GPU, if it has one, else on its threads."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise missing("onnxruntime", redacted(uri)) from None

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = worker.threads, 1
    options.log_severity_level = 4  # an error is raised, too
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # workers share cores
    providers: list[Any] = ["CPUExecutionProvider"]
    if on_gpu := worker.device.startswith("cuda"):
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            do = "pip uninstall onnxruntime; pip install onnxruntime-gpu; or leave out `gpus`"
            raise StageError("this onnxruntime has no CUDA", f"stage '{worker.stage}'", do)
        number = worker.device.partition(":")[2] or "0"
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": number}))
    try:
        session = onnxruntime.InferenceSession(body, options, providers=providers)
    except Exception as error:  # onnxruntime has no common base of its errors
        advice = (do for words, do in ADVICE.items() if words in str(error))
        do = next(advice, f"copy it again, or export it again; {install('onnxruntime')}")
        raise StageError(f"a file that is no network: {_words(error)}", redacted(uri), do) from None
    if on_gpu and "CUDAExecutionProvider" not in session.get_providers():  # it goes on without
        do = "install the CUDA and cuDNN that its onnxruntime-gpu asks for; or leave out `gpus`"
        raise StageError("onnxruntime could not load CUDA", f"stage '{worker.stage}'", do)
    return Network(session, uri, hashlib.sha256(body).hexdigest(), on_gpu)


def _words(error: Exception) -> str:
    """Returns the last line of a message that says something, without places in C++ code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rpartition(") ")[2][-200:]


def named_weights(uri: str) -> tuple[dict[str, NDArray[Any]], str]:
    """Returns the tensors of a file by name, in its order, and the file's digest."""
    body = read(uri)
    try:
        if uri.endswith(".safetensors"):
            from safetensors.numpy import load

            weights = load(body)
        else:
            import torch

            found = torch.load(BytesIO(body), map_location="cpu", weights_only=True)
            weights = {name: tensor.float().numpy() for name, tensor in found.items()}
    except ModuleNotFoundError as error:
        raise missing(error.name, redacted(uri)) from None
    except Exception as error:  # on bytes of others, unpicklers raise anything
        words = str(error).partition("\n")[0] or type(error).__name__
        do = "give a .safetensors, or a .pth of weights alone: torch.save(model.state_dict(), FILE)"
        raise StageError(f"no file of weights: {words[:200]}", redacted(uri), do) from None
    return weights, hashlib.sha256(body).hexdigest()


def square_of(rgb: RGB, side: int, crop: bool = False) -> RGB:
    """Returns (S, S, 3) the picture, or its central square, by Pillow's bilinear filter."""
    from PIL import Image

    height, width = rgb.shape[:2]
    short = min(height, width)
    left, top = (width - short) / 2, (height - short) / 2
    box = (left, top, left + short, top + short) if crop else None
    picture = Image.fromarray(rgb).resize((side, side), Image.Resampling.BILINEAR, box=box)
    return np.asarray(picture)
