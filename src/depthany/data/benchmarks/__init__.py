"""Readers of data sets that are only for evaluation, in their official layouts. A protocol chooses what
counts.
"""

from depthany.data.benchmarks.da2k import OrdinalPairs
from depthany.data.benchmarks.ddad import DdadProjected
from depthany.data.benchmarks.diode import Diode
from depthany.data.benchmarks.eth3d import Eth3d
from depthany.data.benchmarks.ibims import Ibims
from depthany.data.benchmarks.scannet import ScannetMarigold
from depthany.data.benchmarks.sintel import Sintel
from depthany.data.benchmarks.sun_rgbd import SunRgbd

__all__ = [
    "DdadProjected",
    "Diode",
    "Eth3d",
    "Ibims",
    "OrdinalPairs",
    "ScannetMarigold",
    "Sintel",
    "SunRgbd",
]
