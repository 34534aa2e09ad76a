"""Readers of the benchmarks, from their official layouts. What counts in them is a protocol's choice."""

from depthany.data.benchmarks.da2k import OrdinalPairs
from depthany.data.benchmarks.ddad import DdadProjected
from depthany.data.benchmarks.diode import Diode
from depthany.data.benchmarks.eth3d import Eth3d
from depthany.data.benchmarks.ibims import Ibims
from depthany.data.benchmarks.kitti import KittiEigen
from depthany.data.benchmarks.nyu import nyu_eigen
from depthany.data.benchmarks.scannet import ScannetMarigold
from depthany.data.benchmarks.sintel import Sintel
from depthany.data.benchmarks.vkitti2 import VirtualKITTI2Val

__all__ = [
    "DdadProjected",
    "Diode",
    "Eth3d",
    "Ibims",
    "KittiEigen",
    "OrdinalPairs",
    "ScannetMarigold",
    "Sintel",
    "VirtualKITTI2Val",
    "nyu_eigen",
]
