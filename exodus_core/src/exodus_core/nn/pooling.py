"""Pools over (height, width) in the time that their memory takes: MaxPool2d and AvgPool2d."""

from __future__ import annotations

import torch
from torch import Tensor

from exodus_core.pooling import avg_pool2d, max_pool2d


class MaxPool2d(torch.nn.MaxPool2d):
    """torch.nn.MaxPool2d, with its bits, on the kernels of `exodus_core.pooling.max_pool2d`, which says of what.

    Args:
        kernel_size, stride, padding: as of torch.nn.MaxPool2d.
        dilation, return_indices, ceil_mode: as well; other values than 1, False and False are computed by torch.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The largest value of each window of x, shape (channels, height, width), with a batch before or without."""
        if self.return_indices or self.ceil_mode or self.dilation not in (1, (1, 1), [1, 1]):
            found: Tensor = super().forward(x)
            return found
        return max_pool2d(x, self.kernel_size, self.stride, self.padding)


class AvgPool2d(torch.nn.AvgPool2d):
    """torch.nn.AvgPool2d, with its bits in float32 and float64, on the kernels of `exodus_core.pooling.avg_pool2d`.

    Args:
        kernel_size, stride, padding, count_include_pad, divisor_override: as of torch.nn.AvgPool2d.
        ceil_mode: as well; True is computed by torch.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The mean of each window of x, shape (channels, height, width), with a batch before or without."""
        if self.ceil_mode:
            return super().forward(x)
        sizes = (self.kernel_size, self.stride, self.padding)
        return avg_pool2d(x, *sizes, self.count_include_pad, self.divisor_override)
