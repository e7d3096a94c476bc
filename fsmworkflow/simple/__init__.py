"""The simple use: a machine made of a configuration, that takes records and says what became of them.

    from fsmworkflow.simple import SimpleFSM

    with SimpleFSM("pipeline.yaml", custom_functions={"mark": mark}) as pipeline:
        print(pipeline.process({"input": "data"})["data"])

A configuration is one of dataknobs-fsm, or a Workflow. Records pass in memory, as those of a stream do: what must
survive a crash is a run of an Engine.
"""

from __future__ import annotations

from fsmworkflow.simple.machine import AdvancedFSM, AsyncSimpleFSM, SimpleFSM
from fsmworkflow.simple.walk import StateTime, Step, Walk
from fsmworkflow.simple.words import BatchProgress, DataHandlingMode, ExecutionMode, Profile, StreamProgress

__all__ = [
    "AdvancedFSM", "AsyncSimpleFSM", "BatchProgress", "DataHandlingMode", "ExecutionMode", "Profile", "SimpleFSM",
    "StateTime", "Step", "StreamProgress", "Walk",
]  # fmt: skip
