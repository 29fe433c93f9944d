"""From a plan to the files that run it elsewhere: one module per target, all checked before a file is written."""

from tuneserve.deploy._deployment import Deployment, make_deployment
from tuneserve.deploy._files import write
from tuneserve.deploy._parts import Part
from tuneserve.deploy._targets import TARGETS, Target, find_target

__all__ = ["TARGETS", "Deployment", "Part", "Target", "find_target", "make_deployment", "write"]
