"""Heatmap codecs: from points to the maps that a network is to predict, and back.

All of them take whole batches on any device. Points are (x, y), sizes (height, width). A point (0, 0) is the middle of
the upper left pixel; how the pixels of the map lie on those of the input is part of a codec's paper, and said there.
"""

from kd_tasks.vision.heatmaps.base import HeatmapCodec
from kd_tasks.vision.heatmaps.gaussian import DarkHeatmap, GaussianHeatmap
from kd_tasks.vision.heatmaps.peak import PeakHeatmap
from kd_tasks.vision.heatmaps.softmax import SoftmaxHeatmap
from kd_tasks.vision.heatmaps.udp import UDPHeatmap

__all__ = ["DarkHeatmap", "GaussianHeatmap", "HeatmapCodec", "PeakHeatmap", "SoftmaxHeatmap", "UDPHeatmap"]
